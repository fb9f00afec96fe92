//! `netobs drops`: what the kernel drops, as it happens, or over a time.

use std::{
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{
    agent::Agent,
    cli::{DropsCommand, DropsOutput},
    model::Snapshot,
    observe,
    output::{
        drops::{self, Seen},
        filter::Filter,
    },
};

/// # Errors
/// Without privileges or what the kernel has to have for it, with a filter that is wrong, or when the output
/// cannot be written.
pub fn run(args: &DropsCommand) -> anyhow::Result<ExitCode> {
    let filter = Filter::parse(&args.filter)?;
    observe::keep_needed_privileges(&args.observe, &[])?;
    observe::runtime()?.block_on(async {
        let mut ending = observe::Ending::new()?;
        let options = observe::drop_options(&args.drops, args.all);
        let mut agent = observe::start(&args.observe, None, Some(options), None, None)?;
        agent.settle(observe::SETTLE).await;
        if !agent.looks_for_drops() {
            let degraded = agent.sample().agent.degraded;
            let why = degraded.into_iter().find(|(feature, _)| feature == "drops").map(|(_, why)| why);
            anyhow::bail!("drops cannot be looked for: {}", why.unwrap_or_default());
        }
        let show = follow(&mut agent, args, &filter);
        tokio::select! {
            result = show => result?,
            () = ending.wished() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints what was dropped at each interval in which anything was.
async fn follow(agent: &mut Agent, args: &DropsCommand, filter: &Filter) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let pause = args.period.unwrap_or(args.interval).max(SHORTEST);
    let mut left = if args.period.is_some() { Some(1) } else { args.count };
    let mut seen = Seen::default();
    if args.output == DropsOutput::Csv {
        drops::csv_header(&mut out)?;
        out.flush()?;
    }
    let mut tick = interval_at(Instant::now() + pause, pause);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let snapshot = drops::select(agent.sample(), filter);
                let news = seen.update(&snapshot);
                if news || args.period.is_some() {
                    print(&mut out, args, &snapshot, &seen)?;
                    left = left.map(|left| left - 1);
                }
                if left == Some(0) || observe::reader_is_gone() {
                    return Ok(());
                }
            }
            () = agent.changed() => {}
        }
    }
}

/// Events of the last milliseconds are left for the next reading: there must be one.
const SHORTEST: Duration = Duration::from_millis(50);

fn print(out: &mut impl Write, args: &DropsCommand, snapshot: &Snapshot, seen: &Seen) -> anyhow::Result<()> {
    match args.output {
        DropsOutput::Table => {
            let width = crossterm::terminal::size().ok().filter(|_| io::stdout().is_terminal());
            write!(out, "{}", drops::table(snapshot, seen, width.map(|(columns, _)| columns)))?;
        }
        DropsOutput::Json => writeln!(out, "{}", drops::json(snapshot)?)?,
        DropsOutput::Csv => drops::csv_rows(out, snapshot, seen)?,
    }
    Ok(out.flush()?)
}
