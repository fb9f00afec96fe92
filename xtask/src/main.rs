//! The project's own commands: `cargo xtask --help`.

mod apt;
mod check;
mod ebpf;
mod engine;
mod imports;
mod process;
mod rows;
mod rustc;
mod setup;
mod test;
mod vm;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Commands for working on netobs")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get what building the kernel object needs: bpf-linker, llvm-strip, the library sources
    Setup {
        /// Let rustup add the library sources to the toolchain
        #[arg(long)]
        rustup: bool,
    },
    /// Build the kernel objects, netobs/bpf/*.bpf.o
    Ebpf {
        /// Only prove that the committed object is the build of these sources
        #[arg(long)]
        check: bool,
    },
    /// Run all tests, setting up what they need; says what it had to leave out
    Test {
        /// Leaving out is failing
        #[arg(long)]
        ci: bool,
        /// Passed on to the tests: a part of their names
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// Run tests on the distribution's kernels, in virtual machines
    Vm(vm::Options),
    /// The maintainer's checks: format, lints, imports, dependencies, kernel object
    Check,
}

fn main() -> anyhow::Result<()> {
    if rustc::run_if_wrapper().is_some() {
        anyhow::bail!("rustc could not be run");
    }
    match Cli::parse().command {
        Command::Setup { rustup } => setup::run(rustup).map(drop),
        Command::Ebpf { check } => ebpf::run(check),
        Command::Test { ci, filter } => test::run(ci, &filter),
        Command::Vm(options) => vm::run(&options),
        Command::Check => check::run(),
    }
}
