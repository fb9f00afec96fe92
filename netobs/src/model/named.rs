//! How a container is asked for: by its name, or by how its ID begins.

/// Digits of an ID that are too few to tell a container by: names are words, too.
const ID_MIN: usize = 4;

/// Whether `wanted` is a container: of this name, or of an ID that begins so.
pub fn is_named(wanted: &str, name: &str, id: &str) -> bool {
    wanted == name || has_id(wanted, id)
}

/// Whether an ID begins so.
pub fn has_id(wanted: &str, id: &str) -> bool {
    wanted.len() >= ID_MIN && id.starts_with(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_no_id() {
        for (wanted, is) in
            [("db", true), ("cafe", true), ("cafe1", true), ("caf", false), ("", false), ("afe1", false)]
        {
            assert_eq!(is_named(wanted, "db", "cafe1234"), is, "{wanted}");
        }
    }
}
