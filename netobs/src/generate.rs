//! `netobs generate`: shell completions and man pages, for packages (docs/adr/0019-packages.md).

use std::{io, io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::cli::{Cli, Generate, GenerateArgs};

/// # Errors
/// When what was asked for cannot be written.
pub fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let mut command = Cli::command();
    match &args.what {
        Generate::Completions { shell } => {
            // Not right to the terminal: the generator panics when nobody reads any more.
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command, "netobs", &mut text);
            io::stdout().write_all(&text)?;
        }
        Generate::Man { folder } => {
            std::fs::create_dir_all(folder)
                .and_then(|()| clap_mangen::generate_to(command, folder))
                .with_context(|| format!("write man pages into {}", folder.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
