//! `netobs watch`: the full-screen view on a terminal, lines of output elsewhere.

mod source;

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser as _;
use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use tokio::time::MissedTickBehavior;

use self::source::Source;
use crate::{
    cli::{Cli, Command, Output, WatchArgs},
    demo,
    model::{Snapshot, named::is_named},
    observe,
    output::{
        csv,
        filter::{self, Filter},
        json, table,
        watch::{self, FLOWS_MAX, Flow, Tab, View},
        wide,
    },
    running::Running,
};

/// Between the two samples that the rates of a single answer are taken from.
const RATE_PAUSE: Duration = Duration::from_millis(100);

/// How long an agent that has gone, as for an upgrade, is waited for where nobody watches a screen.
const AWAY: Duration = Duration::from_secs(30);

/// # Errors
/// Without privileges, with a filter or name that is wrong, or when the output cannot be written.
pub fn run(args: &WatchArgs) -> anyhow::Result<ExitCode> {
    let filter = Filter::parse(&args.filter)?;
    // Before any thread is started: they are to live in the demo's namespace.
    let world = if args.demo { Some(demo::build()?) } else { None };
    if world.is_none() {
        observe::keep_needed_privileges(&args.observe, &[])?;
    }
    observe::runtime()?.block_on(async {
        let mut ending = observe::Ending::new()?;
        let running = if world.is_none() && !is_standalone(args) { Running::find().await } else { None };
        let mut source = match running {
            Some(running) => {
                tracing::info!("reading from the agent that runs; --standalone observes");
                Source::Running(running)
            }
            None => {
                let mut agent = observe::start(&args.observe, world, None, Some(&args.events), None)?;
                observe::look_at_tcp(&mut agent, &args.tcp, &args.observe, &args.drops.btf);
                Source::Own(Box::new(agent))
            }
        };
        let full_screen =
            args.output.is_none() && !args.once && args.count.is_none() && io::stdout().is_terminal();
        let show = async {
            if full_screen {
                screen(&mut source, args, &filter).await
            } else {
                lines(&mut source, args, &filter).await
            }
        };
        tokio::select! {
            result = show => result?,
            () = ending.wished() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Whether it is said how to observe: an agent that runs observes in its own way.
fn is_standalone(args: &WatchArgs) -> bool {
    let Ok(Cli { command: Command::Watch(usual) }) = Cli::try_parse_from(["netobs", "watch"]) else {
        return true;
    };
    args.standalone
        || (&args.observe, &args.events, &args.tcp, &args.drops)
            != (&usual.observe, &usual.events, &usual.tcp, &usual.drops)
}

/// Prints a snapshot at each interval.
async fn lines(source: &mut Source, args: &WatchArgs, filter: &Filter) -> anyhow::Result<()> {
    let output = args.output.unwrap_or(Output::Table);
    let mut left = if args.once { Some(1) } else { args.count };
    let mut out = io::stdout().lock();
    if output == Output::Csv {
        csv::write_header(&mut out)?;
    }
    source.settle().await;
    source.sample(AWAY).await?;
    source.follow(if args.once { RATE_PAUSE } else { args.interval }).await;
    let mut tick = tokio::time::interval(args.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let snapshot = select(source.sample(AWAY).await?, args, filter)?;
                print(&mut out, output, &snapshot)?;
                if observe::reader_is_gone() {
                    return Ok(());
                }
                left = left.map(|left| left - 1);
                if left == Some(0) {
                    return Ok(());
                }
            }
            () = source.changed() => {}
        }
    }
}

fn print(out: &mut impl io::Write, output: Output, snapshot: &Snapshot) -> anyhow::Result<()> {
    match output {
        Output::Table => {
            let width = crossterm::terminal::size().ok().filter(|_| io::stdout().is_terminal());
            writeln!(out, "{}", table::table(snapshot, width.map(|(columns, _)| columns)))?;
        }
        Output::Wide => write!(out, "{}", wide::table(snapshot))?,
        Output::Json => writeln!(out, "{}", json::line(snapshot)?)?,
        Output::Csv => csv::write_rows(out, snapshot)?,
    }
    Ok(out.flush()?)
}

/// What was asked for. A container named on the command line must exist.
fn select(snapshot: Snapshot, args: &WatchArgs, filter: &Filter) -> anyhow::Result<Snapshot> {
    if args.containers.is_empty() {
        return Ok(filter.apply(snapshot));
    }
    let mut wanted = Vec::new();
    for name in &args.containers {
        let found =
            snapshot.containers.iter().find(|container| is_named(name, &container.name, &container.id));
        match found {
            Some(container) => wanted.push(format!("id={}", container.id)),
            None => match filter::nearest(name, &snapshot) {
                Some(nearest) => anyhow::bail!("no container {name}; did you mean {nearest}?"),
                None => anyhow::bail!("no container {name}; see `netobs watch --once` for what there is"),
            },
        }
    }
    Ok(filter.apply(Filter::parse(&wanted)?.apply(snapshot)))
}

/// The full-screen view until it is left.
async fn screen(source: &mut Source, args: &WatchArgs, filter: &Filter) -> anyhow::Result<()> {
    source.settle().await;
    let mut view = View::new(None);
    refresh(source, &mut view, args, filter).await?;
    let mut tick = tokio::time::interval(args.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Restores the terminal when it goes out of scope, and before a panic's message.
    let mut terminal = Terminal::enter()?;
    let mut keys = EventStream::new();
    loop {
        terminal.0.draw(|frame| watch::draw(frame, &view)).context("draw on the terminal")?;
        tokio::select! {
            _ = tick.tick() => {
                // A container that was there at first may have ended and gone; the last picture stays.
                if let Err(error) = refresh(source, &mut view, args, filter).await {
                    view.stale = Some(format!("{error:#}"));
                }
            }
            () = source.changed() => {}
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    let tab = view.tab;
                    if view.key(key) == Flow::Quit {
                        return Ok(());
                    }
                    if view.tab != tab {
                        tick.reset_immediately();
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("read the keyboard"),
                None => return Ok(()),
            },
        }
    }
}

/// Brings what the view shows up to date. What no view has asked for is not looked for.
async fn refresh(
    source: &mut Source,
    view: &mut View,
    args: &WatchArgs,
    filter: &Filter,
) -> anyhow::Result<()> {
    let snapshot = match view.tab {
        Tab::Drops => source.sample_with_drops(&observe::drop_options(&args.drops, false)).await?,
        _ => source.sample(Duration::ZERO).await?,
    };
    let snapshot = select(snapshot, args, filter)?;
    let flows = if view.tab == Tab::Flows && args.observe.max_flows > 0 {
        let all = args.containers.is_empty() && filter.is_empty();
        let ids = || snapshot.containers.iter().map(|container| container.id.clone()).collect();
        Some(source.flows((!all).then(ids), FLOWS_MAX).await?)
    } else {
        None
    };
    view.update(snapshot, flows);
    Ok(())
}

struct Terminal(ratatui::DefaultTerminal);

impl Terminal {
    fn enter() -> anyhow::Result<Self> {
        ratatui::try_init().map(Self).context("take over the terminal; `--output table` does without")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
