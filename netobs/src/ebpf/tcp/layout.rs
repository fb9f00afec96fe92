//! What the programs have to know of the running kernel, from its type information.

use netobs_common::tcp::TcpLayout;

use super::Feature;
use crate::ebpf::btf::{Btf, BtfError};

/// Fills in what a feature needs.
type Read = fn(&Btf<'_>, &mut TcpLayout) -> Result<(), BtfError>;

/// Where things are, and what cannot be had since something is not there.
///
/// # Errors
/// When nothing can be had.
pub fn layout(btf: &Btf<'_>) -> Result<(TcpLayout, Vec<(Feature, BtfError)>), BtfError> {
    let at = |of: &str, path: &str| btf.member(of, path).map(|member| member.byte_offset());
    let mut layout = TcpLayout {
        sock_net: at("sock_common", "skc_net.net")?,
        net_inum: at("net", "ns.inum")?,
        ..TcpLayout::default()
    };
    if let Ok(cookie) = at("net", "net_cookie") {
        (layout.net_cookie, layout.has_cookie) = (cookie, 1);
    }
    let parts: [(Feature, Read); 3] =
        [(Feature::Connections, connections), (Feature::Retransmits, retransmits), (Feature::Resets, resets)];
    let missing =
        parts.into_iter().filter_map(|(feature, read)| Some((feature, read(btf, &mut layout).err()?)));
    let missing = missing.collect();
    Ok((layout, missing))
}

fn connections(btf: &Btf<'_>, layout: &mut TcpLayout) -> Result<(), BtfError> {
    let at = |of: &str, path: &str| btf.member(of, path).map(|member| member.byte_offset());
    layout.sock_family = at("sock_common", "skc_family")?;
    layout.sock_state = at("sock_common", "skc_state")?;
    layout.sock_daddr = at("sock_common", "skc_daddr")?;
    layout.sock_rcv_saddr = at("sock_common", "skc_rcv_saddr")?;
    layout.sock_dport = at("sock_common", "skc_dport")?;
    // A kernel without IPv6 has neither of these nor sockets that have them.
    layout.sock_v6_daddr = at("sock_common", "skc_v6_daddr").unwrap_or_default();
    layout.sock_v6_rcv_saddr = at("sock_common", "skc_v6_rcv_saddr").unwrap_or_default();
    layout.sock_protocol = at("sock", "sk_protocol")?;
    layout.sock_err = at("sock", "sk_err")?;
    layout.inet_sport = at("inet_sock", "inet_sport")?;
    layout.tcp_srtt_us = at("tcp_sock", "srtt_us")?;
    layout.tcp_total_retrans = at("tcp_sock", "total_retrans")?;
    layout.tcp_segs_out = at("tcp_sock", "segs_out")?;
    Ok(())
}

/// `TCP_SKB_CB(skb)->tcp_gso_segs`
fn retransmits(btf: &Btf<'_>, layout: &mut TcpLayout) -> Result<(), BtfError> {
    let within = btf.member("tcp_skb_cb", "tcp_gso_segs")?.byte_offset();
    layout.skb_segments = btf.member("sk_buff", "cb")?.byte_offset() + within;
    Ok(())
}

fn resets(btf: &Btf<'_>, layout: &mut TcpLayout) -> Result<(), BtfError> {
    // The first parameter is the probe's own. With a reason came those without a socket.
    if btf.parameters("btf_trace_tcp_send_reset")? > 3 {
        layout.skb_refdst = btf.member("sk_buff", "_skb_refdst")?.byte_offset();
        layout.dst_dev = btf.member("dst_entry", "dev")?.byte_offset();
        layout.dev_net = btf.member("net_device", "nd_net.net")?.byte_offset();
        layout.has_socketless_resets = 1;
    }
    Ok(())
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
        let (layout, missing) = layout(&btf).expect("a layout");
        assert!(missing.is_empty(), "{missing:?}");
        assert!(layout.tcp_srtt_us > layout.inet_sport && layout.inet_sport > layout.sock_err, "{layout:?}");
        assert_eq!(layout.sock_rcv_saddr, layout.sock_daddr + 4, "{layout:?}");
    }
}
