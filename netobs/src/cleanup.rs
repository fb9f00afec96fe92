//! `netobs cleanup`: removes what netobs has left on this host, and nothing else.

use std::{io, io::Write as _, path::Path, process::ExitCode};

use anyhow::Context as _;

use crate::{
    cli::CleanupArgs,
    discovery::{namespace, netlink},
    ebpf::{
        self, Leftover,
        pins::{self, PinError},
    },
    netlink::{Entrance, Netlink},
    output::format::escape,
};

/// What was done.
#[derive(Default)]
struct Done {
    removed: usize,
    /// Of netobs processes that live.
    alive: usize,
    /// Could not be removed, or looked at.
    failed: usize,
}

/// # Errors
/// If this namespace cannot be looked at, or the output cannot be written. What could not be removed is said,
/// and in the exit code.
pub fn run(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut done = Done::default();
    let mut pinned = false;
    // Held to the end: no agent begins to pin meanwhile.
    let mut _lock = None;
    match pins::remove(&args.pin_folder, args.dry_run) {
        Ok(Some((lock, files))) => {
            pinned = true;
            _lock = Some(lock);
            for file in files {
                let verb = if args.dry_run { "would remove" } else { "removed" };
                writeln!(out, "{verb} pin {}", file.display())?;
                done.removed += 1;
            }
        }
        // A folder that is lost leaves filters of nobody.
        Ok(None) => pinned = ebpf::claim_pinned().is_ok(),
        Err(PinError::Locked(folder)) => {
            writeln!(out, "left: what the agent that runs has pinned in {folder}")?
        }
        Err(error @ PinError::Claimed(_)) => {
            writeln!(out, "left: what is pinned in {}: {error}", args.pin_folder.display())?
        }
        Err(error) => {
            writeln!(out, "could not remove pins: {error}")?;
            done.failed += 1;
        }
    }
    let mut own = Netlink::connect().context("open a netlink socket")?;
    clean(&mut own, None, (args.dry_run, pinned), &mut done, &mut out)
        .context("look at the host's interfaces")?;
    let mut closed = 0;
    for entrance in namespace::others(&args.proc_root).context("list processes")? {
        match entrance.connect() {
            Ok(mut inside) => {
                if let Err(error) =
                    clean(&mut inside, Some(&entrance), (args.dry_run, false), &mut done, &mut out)
                {
                    tracing::warn!(%error, namespace = %entrance.path.display(), "look at its interfaces");
                    done.failed += 1;
                }
            }
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::debug!(%error, namespace = %entrance.path.display(), "enter a network namespace");
                closed += 1;
            }
        }
    }
    if closed > 0 {
        done.failed += 1;
        writeln!(out, "not looked at: {closed} network namespaces (CAP_SYS_ADMIN and CAP_SYS_PTRACE)")?;
    }
    if done.alive > 0 {
        writeln!(out, "left: {} filters of netobs processes that run", done.alive)?;
    }
    match (done.removed, args.dry_run) {
        (0, _) => writeln!(out, "nothing to remove")?,
        (count, true) => writeln!(out, "{count} to remove; nothing was removed")?,
        (count, false) => writeln!(out, "removed {count}")?,
    }
    Ok(if done.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Removes what is left in the namespace that the client is of.
fn clean(
    netlink: &mut Netlink,
    inside: Option<&Entrance>,
    (dry_run, pinned): (bool, bool),
    done: &mut Done,
    out: &mut impl io::Write,
) -> anyhow::Result<()> {
    for link in netlink::links(netlink, None)? {
        let found = ebpf::leftovers(netlink, link.ifindex, inside, pinned)?;
        done.alive += found.alive;
        for leftover in found.leftovers {
            let what = describe(&leftover, &link.name, inside.map(|inside| inside.path.as_path()));
            if dry_run {
                writeln!(out, "would remove {what}")?;
                done.removed += 1;
                continue;
            }
            match leftover.remove(netlink) {
                Ok(()) => {
                    writeln!(out, "removed {what}")?;
                    done.removed += 1;
                }
                Err(error) => {
                    writeln!(out, "could not remove {what}: {error}")?;
                    done.failed += 1;
                }
            }
        }
    }
    Ok(())
}

fn describe(leftover: &Leftover, name: &str, namespace: Option<&Path>) -> String {
    let direction = if leftover.ingress { "ingress" } else { "egress" };
    let namespace = namespace.map(|path| format!(" in {}", path.display())).unwrap_or_default();
    format!(
        "filter of netobs {} at {direction} of {} (ifindex {}){namespace}",
        leftover.handle,
        escape(name),
        leftover.ifindex
    )
}
