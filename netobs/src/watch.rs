//! `netobs watch`: the full-screen view on a terminal, lines of output elsewhere.

use std::{
    collections::HashSet,
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use tokio::time::MissedTickBehavior;

use crate::{
    agent::Agent,
    cli::{Output, WatchArgs},
    demo,
    model::{Snapshot, conversation::Conversation},
    observe,
    output::{
        csv,
        filter::{self, Filter},
        json, table,
        watch::{self, FLOWS_MAX, Flow, Tab, View},
        wide,
    },
};

/// Between the two samples that the rates of a single answer are taken from.
const RATE_PAUSE: Duration = Duration::from_millis(100);

/// # Errors
/// Without privileges, with a filter or name that is wrong, or when the output cannot be written.
pub fn run(args: &WatchArgs) -> anyhow::Result<ExitCode> {
    let filter = Filter::parse(&args.filter)?;
    // Before any thread is started: they are to live in the demo's namespace.
    let world = if args.demo { Some(demo::build()?) } else { None };
    observe::runtime()?.block_on(async {
        let mut ending = observe::Ending::new()?;
        let mut agent = observe::start(&args.observe, world, None, Some(&args.events))?;
        observe::look_at_tcp(&mut agent, &args.tcp, &args.observe, &args.drops.btf);
        let full_screen =
            args.output.is_none() && !args.once && args.count.is_none() && io::stdout().is_terminal();
        let show = async {
            if full_screen {
                screen(&mut agent, args, &filter).await
            } else {
                lines(&mut agent, args, &filter).await
            }
        };
        tokio::select! {
            result = show => result?,
            () = ending.wished() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints a snapshot at each interval.
async fn lines(agent: &mut Agent, args: &WatchArgs, filter: &Filter) -> anyhow::Result<()> {
    let output = args.output.unwrap_or(Output::Table);
    let mut left = if args.once { Some(1) } else { args.count };
    let mut out = io::stdout().lock();
    if output == Output::Csv {
        csv::write_header(&mut out)?;
    }
    agent.settle(observe::SETTLE).await;
    agent.sample();
    wait(agent, if args.once { RATE_PAUSE } else { args.interval }).await;
    let mut tick = tokio::time::interval(args.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let snapshot = select(agent.sample(), args, filter)?;
                print(&mut out, output, &snapshot)?;
                if observe::reader_is_gone() {
                    return Ok(());
                }
                left = left.map(|left| left - 1);
                if left == Some(0) {
                    return Ok(());
                }
            }
            () = agent.changed() => {}
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
        let found = snapshot.containers.iter().find(|container| {
            container.name == *name || (name.len() >= 4 && container.id.starts_with(name.as_str()))
        });
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
async fn screen(agent: &mut Agent, args: &WatchArgs, filter: &Filter) -> anyhow::Result<()> {
    agent.settle(observe::SETTLE).await;
    let mut view = View::new(None);
    refresh(agent, &mut view, args, filter)?;
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
                if let Err(error) = refresh(agent, &mut view, args, filter) {
                    tracing::debug!(%error, "select containers");
                }
            }
            () = agent.changed() => {}
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
fn refresh(agent: &mut Agent, view: &mut View, args: &WatchArgs, filter: &Filter) -> anyhow::Result<()> {
    if view.tab == Tab::Drops {
        agent.look_for_drops(&observe::drop_options(&args.drops, false));
    }
    let snapshot = select(agent.sample(), args, filter)?;
    let flows = (view.tab == Tab::Flows && args.observe.max_flows > 0).then(|| {
        let all = args.containers.is_empty() && filter.is_empty();
        let ids: HashSet<&str> = snapshot.containers.iter().map(|container| container.id.as_str()).collect();
        let ends = |flow: &Conversation| [flow.client.id.clone(), flow.server.id.clone()];
        let is_shown =
            |flow: &Conversation| all || ends(flow).iter().flatten().any(|id| ids.contains(id.as_str()));
        agent.flows(is_shown, FLOWS_MAX)
    });
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

async fn wait(agent: &mut Agent, time: Duration) {
    let end = Instant::now() + time;
    while tokio::time::timeout_at(end.into(), agent.changed()).await.is_ok() {}
}
