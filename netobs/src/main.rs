//! Command line, exit codes, nothing else.

use std::{io, process::ExitCode};

use clap::Parser as _;
use netobs::{
    cli::{Cli, Command},
    doctor, drops, flows, serve, topology, trace, watch,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("NETOBS_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,netobs=info")),
        )
        .with_writer(io::stderr)
        .without_time()
        .init();
    let result = match cli.command {
        Command::Watch(args) => watch::run(&args),
        Command::Agent(args) => serve::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::Topology(args) => topology::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Drops(args) => drops::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netobs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Who read our output has had enough, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().or_else(|| {
            let csv = cause.downcast_ref::<csv::Error>()?;
            if let csv::ErrorKind::Io(error) = csv.kind() { Some(error) } else { None }
        });
        io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
