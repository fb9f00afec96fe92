//! `netobs flows`: who talks to whom, once or again and again.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use tokio::time::MissedTickBehavior;

use crate::{
    agent::Agent,
    cli::{FlowsArgs, FlowsOutput},
    ebpf::drops::BTF_FILE,
    model::conversation::{Conversation, Conversations},
    observe, output,
};

/// # Errors
/// Without privileges, or when the output cannot be written.
pub fn run(args: &FlowsArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(args.observe.max_flows > 0, "--max-flows 0 means that there are none to show");
    observe::keep_needed_privileges(&args.observe, &[])?;
    observe::runtime()?.block_on(async {
        let mut ending = observe::Ending::new()?;
        let mut agent = observe::start(&args.observe, None, None, None, None)?;
        observe::look_at_tcp(&mut agent, &args.tcp, &args.observe, Path::new(BTF_FILE));
        let show = async {
            agent.settle(observe::SETTLE).await;
            let mut tick = tokio::time::interval(args.interval);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first comes at once, and nothing has been counted by then.
            tick.tick().await;
            let mut left = args.count;
            while left != Some(0) {
                tokio::select! {
                    _ = tick.tick() => {
                        print(args, &look(args, &mut agent))?;
                        left = left.map(|left| left - 1);
                        if observe::reader_is_gone() {
                            break;
                        }
                    }
                    () = agent.changed() => {}
                }
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

fn look(args: &FlowsArgs, agent: &mut Agent) -> Conversations {
    let keep = |flow: &Conversation| {
        args.containers.is_empty() || args.containers.iter().any(|container| flow.is_of(container))
    };
    agent.flows(keep, args.limit)
}

fn print(args: &FlowsArgs, conversations: &Conversations) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match args.output {
        FlowsOutput::Table => write!(out, "{}", output::flows::table(conversations))?,
        FlowsOutput::Json => writeln!(out, "{}", output::flows::json(conversations)?)?,
        FlowsOutput::Csv => output::flows::csv(&mut out, conversations)?,
    }
    Ok(out.flush()?)
}
