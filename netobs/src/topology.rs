//! `netobs topology`: how things hang together, once, or with what changes.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::SystemTime,
};

use tokio::time::MissedTickBehavior;

use crate::{
    agent::Agent,
    cli::{TopologyArgs, TopologyOutput},
    observe,
    output::{
        filter::Filter,
        topology::{self, Topology},
    },
};

/// # Errors
/// Without privileges, with a filter that is wrong, or when the output cannot be written.
pub fn run(args: &TopologyArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        !args.watch || matches!(args.output, TopologyOutput::Tree | TopologyOutput::Json),
        "--watch prints lines; use it with `--output tree` or `--output json`"
    );
    let filter = Filter::parse(&args.filter)?;
    observe::keep_needed_privileges(&args.observe, &[])?;
    observe::runtime()?.block_on(async {
        let mut ending = observe::Ending::new()?;
        let mut agent = observe::start(&args.observe, None, None, None, None)?;
        let show = async {
            agent.settle(observe::SETTLE).await;
            let mut out = io::stdout().lock();
            let first = Topology::of(&filter.apply(agent.sample()));
            print(&mut out, args.output, &first)?;
            if args.watch {
                follow(&mut agent, args, &filter, &mut out, first).await?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            result = show => result?,
            () = ending.wished() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints what changes until nobody reads any more.
async fn follow(
    agent: &mut Agent,
    args: &TopologyArgs,
    filter: &Filter,
    out: &mut impl Write,
    mut last: Topology,
) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(args.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let now = Topology::of(&filter.apply(agent.sample()));
                if now.graph != last.graph {
                    print_change(out, args.output, &last, &now)?;
                    last = now;
                }
                if observe::reader_is_gone() {
                    return Ok(());
                }
            }
            () = agent.changed() => {}
        }
    }
}

fn print(out: &mut impl Write, output: TopologyOutput, topology: &Topology) -> anyhow::Result<()> {
    match output {
        TopologyOutput::Tree => write!(out, "{}", topology::tree(topology))?,
        TopologyOutput::Dot => write!(out, "{}", topology::dot(topology))?,
        TopologyOutput::Mermaid => write!(out, "{}", topology::mermaid(topology))?,
        TopologyOutput::Json => writeln!(out, "{}", topology::json(topology)?)?,
    }
    Ok(out.flush()?)
}

fn print_change(
    out: &mut impl Write,
    output: TopologyOutput,
    last: &Topology,
    now: &Topology,
) -> anyhow::Result<()> {
    if output == TopologyOutput::Json {
        return print(out, output, now);
    }
    for line in topology::changes(last, now) {
        writeln!(out, "{} {line}", timestamp(now.time))?;
    }
    Ok(out.flush()?)
}

/// UTC, to the second.
fn timestamp(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time)
}
