//! Whose a filter is. It stays when its process is gone, and must be told from that of a process that lives; also
//! by who sees other processes than its own not at all, or under other numbers (docs/adr/0013-whose-a-filter-is.md).
//!
//! A filter's handle is a number that its process has claimed by an abstract socket of that name. The kernel
//! gives up the socket with the process, and all processes of a network namespace see it.

use std::{
    io,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::OnceLock,
};

/// Claims that are tried: the process ID, then others.
const TRIES: u32 = 64;

/// Numbers that are no process ID (these end at 2^22).
const OTHERS: u32 = 1 << 24;

/// Handle of filters that are to outlive their process. Claimed by the agent that has them.
pub const PINNED: u32 = OTHERS - 1;

static OWNER: OnceLock<Owner> = OnceLock::new();

struct Owner {
    handle: u32,
    /// None: sockets are not to be had, and other processes can tell by the process ID alone.
    _claim: Option<OwnedFd>,
}

/// This process's handle, in the network namespace in which it is first asked for.
pub fn handle() -> u32 {
    OWNER.get_or_init(claim).handle
}

/// Claims the pinned filters of this network namespace.
///
/// # Errors
/// `AddrInUse` if another agent has.
pub fn claim_pinned() -> io::Result<OwnedFd> {
    Ok(UnixDatagram::bind_addr(&name(PINNED)?)?.into())
}

fn claim() -> Owner {
    let pid = std::process::id();
    for handle in
        std::iter::once(pid).chain((0..TRIES).map(|n| OTHERS + pid.wrapping_mul(TRIES) % OTHERS + n))
    {
        match name(handle).and_then(|name| UnixDatagram::bind_addr(&name)) {
            Ok(socket) => return Owner { handle, _claim: Some(socket.into()) },
            // A process of this number in another PID namespace.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => {
                tracing::warn!(%error, "claim a number for filters");
                break;
            }
        }
    }
    Owner { handle: pid, _claim: None }
}

/// Whether filters with this handle are of nobody that lives. Those of this process are not: they are asked
/// about before it has any at the place.
pub fn is_leftover(handle: u32) -> bool {
    // They are for the next agent with `--pin`; `netobs cleanup` gives them up.
    if handle == PINNED {
        return false;
    }
    if OWNER.get().is_some_and(|owner| owner.handle == handle) {
        return true;
    }
    if is_claimed(handle) {
        return false;
    }
    // One in another network namespace, whose sockets are not seen here; or without sockets. A process of this
    // number that is not netobs has it by chance.
    let owner = std::fs::read_to_string(format!("/proc/{handle}/comm"));
    let is_netobs = owner.is_ok_and(|comm| comm.trim_end() == "netobs");
    !is_netobs || handle == std::process::id()
}

/// Whether somebody in this network namespace has claimed a number.
pub fn is_claimed(handle: u32) -> bool {
    let connected = name(handle).and_then(|name| UnixDatagram::unbound()?.connect_addr(&name));
    // Without the right to ask it may be.
    connected.map_or_else(|error| error.kind() != io::ErrorKind::ConnectionRefused, |()| true)
}

fn name(handle: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(text(handle))
}

fn text(handle: u32) -> String {
    format!("netobs/filters/{handle}")
}

/// What the claim to pinned filters is called.
pub fn pinned_name() -> String {
    text(PINNED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_seen_as_long_as_it_is_held() -> io::Result<()> {
        // Of no process, and of no other test.
        const HANDLE: u32 = OTHERS - 7;
        assert!(is_leftover(HANDLE));
        let claim = UnixDatagram::bind_addr(&name(HANDLE)?)?;
        assert!(!is_leftover(HANDLE));
        drop(claim);
        assert!(is_leftover(HANDLE));
        Ok(())
    }

    #[test]
    fn a_number_that_another_has_is_not_claimed() -> io::Result<()> {
        let pid = std::process::id();
        let of_another = UnixDatagram::bind_addr(&name(pid)?)?;
        let owner = claim();
        assert_ne!(owner.handle, pid);
        assert!(is_claimed(owner.handle) && is_claimed(pid));
        drop((of_another, owner));
        assert_eq!(claim().handle, pid);
        Ok(())
    }
}
