//! Command line, exit codes, nothing else.

use std::{io, process::ExitCode};

use clap::Parser as _;
use netobs::{
    cleanup,
    cli::{Cli, Command},
    doctor, drops, flows, generate,
    output::format::visible,
    serve, topology, trace, watch,
};
use tracing_subscriber::{field::MakeExt as _, fmt::format::debug_fn};

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("NETOBS_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,netobs=info")),
        )
        .with_writer(io::stderr)
        // Names in what is logged are data.
        .fmt_fields(
            debug_fn(|to, field, value| {
                let text = format!("{value:?}");
                let text = visible(&text);
                if field.name() == "message" { write!(to, "{text}") } else { write!(to, "{field}={text}") }
            })
            .delimited(" "),
        )
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
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Generate(args) => generate::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netobs: {}", visible(&format!("{error:#}")));
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
