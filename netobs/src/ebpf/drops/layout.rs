//! What the program has to know of the running kernel, from its type information.

use std::collections::BTreeMap;

use netobs_common::drops::{KernelLayout, MAX_SKB_LEN};

use crate::ebpf::btf::{Btf, BtfError, Member};

/// Reasons by number, without their common prefix.
pub type Reasons = BTreeMap<u32, String>;

/// # Errors
/// When the kernel has no such struct or member.
pub fn layout(btf: &Btf<'_>) -> Result<KernelLayout, BtfError> {
    let skb = |member: &str| btf.member("sk_buff", member);
    let [dev, sk, refdst, iif, protocol, network, mac, tail, head, length, pkt_type] = [
        skb("dev")?,
        skb("sk")?,
        skb("_skb_refdst")?,
        skb("skb_iif")?,
        skb("protocol")?,
        skb("network_header")?,
        skb("mac_header")?,
        skb("tail")?,
        skb("head")?,
        skb("len")?,
        skb("pkt_type")?,
    ];
    let offsets =
        [dev, sk, refdst, iif, protocol, network, mac, tail, head, length, pkt_type].map(Member::byte_offset);
    let start = offsets.into_iter().min().unwrap_or_default() & !7;
    // The longest of them is a pointer.
    let end = offsets.into_iter().max().unwrap_or_default() + 8;
    if end - start > MAX_SKB_LEN as u32 {
        return Err(BtfError::Missing(format!("struct sk_buff that is read in {MAX_SKB_LEN} bytes")));
    }
    let parameters = btf.parameters("btf_trace_kfree_skb")?;
    Ok(KernelLayout {
        skb_start: start,
        skb_len: end - start,
        skb_dev: dev.byte_offset() - start,
        skb_sk: sk.byte_offset() - start,
        skb_refdst: refdst.byte_offset() - start,
        skb_iif: iif.byte_offset() - start,
        skb_protocol: protocol.byte_offset() - start,
        skb_network_header: network.byte_offset() - start,
        skb_mac_header: mac.byte_offset() - start,
        skb_tail: tail.byte_offset() - start,
        skb_head: head.byte_offset() - start,
        skb_length: length.byte_offset() - start,
        skb_data: skb("data")?.byte_offset(),
        skb_pkt_type: pkt_type.byte_offset() - start,
        skb_pkt_type_shift: pkt_type.bit_offset % 8,
        dev_ifindex: btf.member("net_device", "ifindex")?.byte_offset(),
        dev_net: btf.member("net_device", "nd_net.net")?.byte_offset(),
        net_inum: btf.member("net", "ns.inum")?.byte_offset(),
        sock_net: btf.member("sock", "__sk_common.skc_net.net")?.byte_offset(),
        dst_dev: btf.member("dst_entry", "dev")?.byte_offset(),
        // The first parameter is the probe's own.
        has_reason: u32::from(parameters > 3),
        has_socket: u32::from(parameters > 4),
    })
}

/// Empty on a kernel that has none.
pub fn reasons(btf: &Btf<'_>) -> Reasons {
    let names = btf.enumerators("skb_drop_reason").unwrap_or_default();
    let short = |name: &str| {
        let short = name.strip_prefix("SKB_DROP_REASON_").or_else(|| name.strip_prefix("SKB_"));
        short.unwrap_or(name).to_owned()
    };
    names.into_iter().map(|(number, name)| (number, short(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_running_kernel() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            assert!(std::env::var_os("CI").is_none(), "this kernel has no type information");
            return eprintln!("SKIP: this kernel has no type information");
        };
        let btf = Btf::parse(&bytes).expect("BTF");
        let layout = layout(&btf).expect("a layout");
        assert!(layout.skb_len as usize <= MAX_SKB_LEN && layout.skb_len.is_multiple_of(8), "{layout:?}");
        assert_eq!(layout.has_reason != 0, reasons(&btf).values().any(|name| name == "NO_SOCKET"));
    }
}
