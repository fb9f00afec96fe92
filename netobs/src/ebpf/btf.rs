//! The kernel's type information (BTF): where members of structs are, what enums name, how many parameters
//! a tracepoint has. Read in place and by name: nothing is kept but where each type begins.
//!
//! Format: Documentation/bpf/btf.rst. What is not as it should be is an error, whatever the bytes.

use std::collections::BTreeMap;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    #[error("it is no BTF of this machine's byte order")]
    Magic,
    #[error("it ends, or is damaged, at type {0}")]
    Malformed(usize),
    #[error("it has no {0}")]
    Missing(String),
}

/// `enum` of uapi/linux/btf.h.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

const MAGIC: u16 = 0xeb9f;
const WORD: usize = 4;
/// Words of what all types begin with.
const HEADER: usize = 3;
/// Typedefs and modifiers of one another that are followed before giving up.
const MAX_DEPTH: usize = 32;
/// Anonymous structs and unions in one struct that are looked into before giving up.
const MAX_ANONYMOUS: u32 = 256;

/// A file of type information.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`. ID 0 is `void`, which has no entry.
    starts: Vec<u32>,
}

/// One type: what all have, and where the rest is.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Members, parameters or values.
    len: usize,
    /// Members have their sizes in bits beside their offsets.
    flag: bool,
    size_or_type: u32,
    /// Of what follows.
    rest: usize,
}

/// Where a member is, from the beginning of the outermost struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub bit_offset: u32,
    /// 0 if it is no bit field.
    pub bit_size: u32,
}

impl Member {
    pub const fn byte_offset(self) -> u32 {
        self.bit_offset / 8
    }
}

impl<'a> Btf<'a> {
    /// # Errors
    /// When the bytes are no BTF, or end too early.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = bytes.get(..2).and_then(|magic| magic.try_into().ok()).map(u16::from_ne_bytes);
        if magic != Some(MAGIC) {
            return Err(BtfError::Magic);
        }
        let header = |index: usize| word(bytes, index * WORD).map(|word| word as usize);
        let section = |offset: usize, len: usize| {
            let start = header(1)?.checked_add(header(offset)?)?;
            bytes.get(start..start.checked_add(header(len)?)?)
        };
        let types = section(2, 3).ok_or(BtfError::Malformed(0))?;
        let strings = section(4, 5).ok_or(BtfError::Malformed(0))?;
        let mut btf = Self { types, strings, starts: Vec::new() };
        let mut at = 0;
        while at < types.len() {
            let id = btf.starts.len() + 1;
            btf.starts.push(u32::try_from(at).map_err(|_| BtfError::Malformed(id))?);
            at = btf.type_at(at).and_then(Type::end).ok_or(BtfError::Malformed(id))?;
        }
        if at > types.len() {
            return Err(BtfError::Malformed(btf.starts.len()));
        }
        Ok(btf)
    }

    /// A struct's member by its path, like `nd_net.net`. Anonymous structs and unions on the way are not
    /// part of it.
    ///
    /// # Errors
    /// If there is none.
    pub fn member(&self, of: &str, path: &str) -> Result<Member, BtfError> {
        let within = self.find(&[kind::STRUCT], of)?;
        self.member_at(within, path).ok_or_else(|| BtfError::Missing(format!("{of}.{path}")))
    }

    /// Names by value.
    ///
    /// # Errors
    /// If there is no such enum.
    pub fn enumerators(&self, name: &str) -> Result<BTreeMap<u32, &'a str>, BtfError> {
        let of = self.find(&[kind::ENUM, kind::ENUM64], name)?;
        let words = if of.kind == kind::ENUM { 2 } else { 3 };
        let value = |index: usize| {
            let at = of.rest + index * words * WORD;
            Some((self.word(at + WORD)?, self.string(self.word(at)?)?))
        };
        Ok((0..of.len).filter_map(value).collect())
    }

    /// Parameters of the function that a typedef is a pointer to.
    ///
    /// # Errors
    /// If there is none.
    pub fn parameters(&self, typedef: &str) -> Result<usize, BtfError> {
        let missing = || BtfError::Missing(typedef.to_owned());
        let pointer = self.resolve(self.find(&[kind::TYPEDEF], typedef)?.size_or_type).ok_or_else(missing)?;
        let function = self.resolve(pointer.size_or_type).ok_or_else(missing)?;
        (function.kind == kind::FUNC_PROTO).then_some(function.len).ok_or_else(missing)
    }

    fn find(&self, kinds: &[u32], name: &str) -> Result<Type, BtfError> {
        let mut all = self.starts.iter().filter_map(|start| self.type_at(*start as usize));
        all.find(|found| kinds.contains(&found.kind) && self.is_called(found.name, name))
            .ok_or_else(|| BtfError::Missing(name.to_owned()))
    }

    fn member_at(&self, within: Type, path: &str) -> Option<Member> {
        let Some((name, rest)) = path.split_once('.') else {
            return Some(self.member_of(within, path, &mut { MAX_ANONYMOUS })?.0);
        };
        let (outer, id) = self.member_of(within, name, &mut { MAX_ANONYMOUS })?;
        let inner = self.member_at(self.structure(id)?, rest)?;
        Some(Member { bit_offset: inner.bit_offset.checked_add(outer.bit_offset)?, ..inner })
    }

    /// The member and its type; in anonymous members too, of which `left` are looked into.
    fn member_of(&self, within: Type, name: &str, left: &mut u32) -> Option<(Member, u32)> {
        *left = left.checked_sub(1)?;
        for index in 0..within.len {
            let at = within.rest + index * 3 * WORD;
            let (called, id, offset) = (self.word(at)?, self.word(at + WORD)?, self.word(at + 2 * WORD)?);
            let (bit_offset, bit_size) =
                if within.flag { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            if self.is_called(called, name) {
                return Some((Member { bit_offset, bit_size }, id));
            }
            if called == 0 {
                let inner = self.structure(id).and_then(|inner| self.member_of(inner, name, left));
                if let Some((mut member, id)) = inner {
                    member.bit_offset = member.bit_offset.checked_add(bit_offset)?;
                    return Some((member, id));
                }
            }
        }
        None
    }

    fn structure(&self, id: u32) -> Option<Type> {
        self.resolve(id).filter(|found| matches!(found.kind, kind::STRUCT | kind::UNION))
    }

    /// What is behind typedefs and modifiers.
    fn resolve(&self, id: u32) -> Option<Type> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let found = self.type_at(*self.starts.get((id as usize).checked_sub(1)?)? as usize)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = found.size_or_type;
                }
                _ => return Some(found),
            }
        }
        None
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let info = self.word(at + WORD)?;
        Some(Type {
            name: self.word(at)?,
            kind: info >> 24 & 0x1f,
            len: info as usize & 0xffff,
            flag: info >> 31 != 0,
            size_or_type: self.word(at + 2 * WORD)?,
            rest: at + HEADER * WORD,
        })
    }

    fn word(&self, at: usize) -> Option<u32> {
        word(self.types, at)
    }

    /// Without looking for the string's end, of which there are many.
    fn is_called(&self, at: u32, name: &str) -> bool {
        let from = self.strings.get(at as usize..).unwrap_or_default();
        from.starts_with(name.as_bytes()) && from.get(name.len()) == Some(&0)
    }

    fn string(&self, at: u32) -> Option<&'a str> {
        let from = self.strings.get(at as usize..)?;
        let end = from.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(from.get(..end)?).ok()
    }
}

impl Type {
    /// Where the next type begins. None for a kind that this does not know: how long it is, is not known.
    fn end(self) -> Option<usize> {
        let words = match self.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 1,
            kind::ARRAY => 3,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 3 * self.len,
            kind::ENUM | kind::FUNC_PROTO => 2 * self.len,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            _ => return None,
        };
        self.rest.checked_add(words * WORD)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(WORD)?)?;
    word.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a file type by type.
    #[derive(Default)]
    struct Builder {
        types: Vec<u32>,
        strings: Vec<u8>,
        ids: u32,
    }

    impl Builder {
        fn new() -> Self {
            Self { strings: vec![0], ..Self::default() }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn add(
            &mut self,
            kind: u32,
            name: &str,
            flag: bool,
            len: usize,
            size_or_type: u32,
            rest: &[u32],
        ) -> u32 {
            let name = self.name(name);
            self.types.extend([name, u32::from(flag) << 31 | kind << 24 | len as u32, size_or_type]);
            self.types.extend(rest);
            self.ids += 1;
            self.ids
        }

        fn structure(&mut self, kind: u32, name: &str, flag: bool, members: &[(&str, u32, u32)]) -> u32 {
            let rest: Vec<u32> =
                members.iter().flat_map(|(name, id, offset)| [self.name(name), *id, *offset]).collect();
            self.add(kind, name, flag, members.len(), 64, &rest)
        }

        fn bytes(&self) -> Vec<u8> {
            let types = (self.types.len() * WORD) as u32;
            let mut bytes = MAGIC.to_ne_bytes().to_vec();
            bytes.extend([1, 0]);
            for word in [24, 0, types, types, self.strings.len() as u32] {
                bytes.extend(u32::to_ne_bytes(word));
            }
            bytes.extend(self.types.iter().flat_map(|word| word.to_ne_bytes()));
            bytes.extend(&self.strings);
            bytes
        }
    }

    /// Anonymous unions, a bit field, a typedef, an enum of each size, a tracepoint.
    fn sample() -> Vec<u8> {
        let mut file = Builder::new();
        let int = file.add(kind::INT, "int", false, 0, 4, &[0]);
        let net = file.structure(kind::STRUCT, "", false, &[("net", int, 64)]);
        let possible = file.add(kind::TYPEDEF, "possible_net_t", false, 0, net, &[]);
        let union = file.structure(kind::UNION, "", false, &[("scratch", int, 0), ("dev", int, 0)]);
        file.structure(kind::STRUCT, "sk_buff", true, &[("", union, 128), ("pkt_type", int, 3 << 24 | 1029)]);
        file.structure(kind::STRUCT, "net_device", false, &[("nd_net", possible, 256)]);
        let (first, second) = (file.name("A"), file.name("B"));
        file.add(kind::ENUM, "small", false, 2, 4, &[first, 0, second, 7]);
        file.add(kind::ENUM64, "large", false, 1, 8, &[second, 9, 0]);
        let prototype = file.add(kind::FUNC_PROTO, "", false, 4, 0, &[0, int, 0, int, 0, int, 0, int]);
        let pointer = file.add(kind::PTR, "", false, 0, prototype, &[]);
        file.add(kind::TYPEDEF, "btf_trace_kfree_skb", false, 0, pointer, &[]);
        file.bytes()
    }

    #[test]
    fn members_enums_and_parameters() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("BTF");
        let at = |bit_offset, bit_size| Ok(Member { bit_offset, bit_size });
        assert_eq!(btf.member("sk_buff", "dev"), at(128, 0));
        assert_eq!(btf.member("sk_buff", "pkt_type"), at(1029, 3));
        assert_eq!(btf.member("net_device", "nd_net.net"), at(320, 0));
        assert_eq!(btf.enumerators("small"), Ok(BTreeMap::from([(0, "A"), (7, "B")])));
        assert_eq!(btf.enumerators("large"), Ok(BTreeMap::from([(9, "B")])));
        assert_eq!(btf.parameters("btf_trace_kfree_skb"), Ok(4));
        let missing = |name: &str| BtfError::Missing(name.to_owned());
        assert_eq!(btf.member("sk_buff", "dev.more"), Err(missing("sk_buff.dev.more")));
        assert_eq!(btf.member("sk_buff", "nothing"), Err(missing("sk_buff.nothing")));
        assert_eq!(btf.enumerators("sk_buff"), Err(missing("sk_buff")));
        assert_eq!(btf.parameters("possible_net_t"), Err(missing("possible_net_t")));
    }

    /// Whatever is asked of it.
    fn ask(bytes: &[u8]) -> bool {
        let Ok(btf) = Btf::parse(bytes) else { return false };
        let answers = [
            btf.member("sk_buff", "dev").is_ok(),
            btf.member("net_device", "nd_net.net").is_ok(),
            btf.enumerators("small").is_ok_and(|names| names.len() == 2),
            btf.parameters("btf_trace_kfree_skb").is_ok(),
        ];
        answers.into_iter().all(|answer| answer)
    }

    #[test]
    fn nothing_cut_short_or_damaged_is_a_panic() {
        let bytes = sample();
        assert!(ask(&bytes));
        for len in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..len]).is_err(), "{len}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff, bytes[at] ^ 0x10] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                ask(&damaged);
            }
        }
        assert!(!ask(b""));
        assert!(!ask(&[0x5a; 4096]));
    }

    #[test]
    fn types_that_are_made_of_themselves_end() {
        let mut file = Builder::new();
        file.structure(kind::STRUCT, "sk_buff", false, &[("", 1, 0), ("", 1, 0)]);
        file.add(kind::TYPEDEF, "btf_trace_kfree_skb", false, 0, 2, &[]);
        let bytes = file.bytes();
        let btf = Btf::parse(&bytes).expect("BTF");
        assert!(btf.member("sk_buff", "dev").is_err());
        assert!(btf.parameters("btf_trace_kfree_skb").is_err());
    }

    /// On whatever kernel the tests run: what any since 5.10 has, cut off anywhere, and with single bytes wrong.
    #[test]
    fn the_running_kernels() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            assert!(std::env::var_os("CI").is_none(), "this kernel has no type information");
            return eprintln!("SKIP: this kernel has no type information");
        };
        let btf = Btf::parse(&bytes).expect("BTF");
        assert_eq!(btf.member("sk_buff", "dev").expect("dev").bit_offset % 64, 0);
        assert_eq!(btf.member("sk_buff", "pkt_type").expect("pkt_type").bit_size, 3);
        assert_eq!(btf.member("list_head", "prev"), Ok(Member { bit_offset: 64, bit_size: 0 }));
        assert!((3..=5).contains(&btf.parameters("btf_trace_kfree_skb").expect("the tracepoint")));
        for part in 1..100 {
            assert!(Btf::parse(&bytes[..bytes.len() / 100 * part]).is_err(), "{part} %");
        }
        let mut damaged = bytes.clone();
        for at in (0..damaged.len()).step_by(damaged.len() / 50) {
            damaged[at] ^= 0xff;
            ask(&damaged);
        }
    }
}
