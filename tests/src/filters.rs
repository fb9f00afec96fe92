//! Filters of others at a clsact qdisc, whose programs the kernel measures.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netobs::netlink::Netlink;

use crate::{netns::Netns, test_run};

/// A filter that lets every packet go on; it stays when the value goes.
pub struct Filter(OwnedFd);

impl Filter {
    /// At a clsact qdisc that is there.
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn add(host: &Netns, ifindex: u32, ingress: bool, priority: u16) -> Self {
        let program = test_run::empty_program().expect("load");
        let mut message = TcMessage::with_index(ifindex.cast_signed());
        let minor = if ingress { 0xfff2 } else { 0xfff3 };
        message.header.parent = TcHandle { major: 0xffff, minor };
        message.header.handle = TcHandle::from(7);
        message.header.info = (u32::from(priority) << 16) | u32::from((libc::ETH_P_ALL as u16).to_be());
        message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName("theirs".to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        host.run(move || {
            let mut netlink = Netlink::connect().expect("netlink");
            let message = RouteNetlinkMessage::NewTrafficFilter(message);
            netlink.change(message, NLM_F_CREATE | NLM_F_EXCL).expect("add a filter");
        });
        Self(program)
    }

    /// How often it has run while the kernel measured.
    pub fn runs(&self) -> u64 {
        test_run::run_count(self.0.as_fd())
    }
}
