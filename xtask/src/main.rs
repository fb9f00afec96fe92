//! The project's own commands: `cargo xtask --help`.

mod ahead;
mod apt;
mod bench;
mod check;
mod dist;
mod ebpf;
mod engine;
mod fuzz;
mod imports;
mod kubernetes;
mod process;
mod rows;
mod rustc;
mod setup;
mod soak;
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
    /// Feed the parsers of what comes from outside with bytes that nobody meant
    Fuzz(fuzz::Options),
    /// Run tests on the distribution's kernels, in virtual machines
    Vm(vm::Options),
    /// Measure what netobs costs, and write the tables of docs/benchmarks.md and docs/scale.md; as root
    Bench {
        /// Only these parts: program, live, rate, agent, scrape, attach, start, nodes, userspace
        #[arg(long = "part")]
        parts: Vec<String>,
        /// Few and short rounds: whether it works, not what it costs. Prints, and changes no file
        #[arg(long)]
        quick: bool,
        /// Print, and change no file
        #[arg(long)]
        print: bool,
    },
    /// Build a Debian package of the static binary, with service, man pages and completions
    Deb,
    /// Build a container image of the static binary, by `docker build`
    Image {
        #[arg(long, default_value = "netobs:latest")]
        tag: String,
    },
    /// Let everything happen at once to a host with containers, and hold all counters against the kernel's; as root
    Soak(soak::Options),
    /// Build what the last steps of the tests need, while the others run
    #[command(hide = true)]
    Ahead,
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
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Bench { parts, quick, print } => bench::run(&parts, quick, print),
        Command::Deb => dist::deb().map(drop),
        Command::Image { tag } => dist::image(&tag),
        Command::Soak(options) => soak::run(&options),
        Command::Ahead => ahead::build(),
        Command::Check => check::run(),
    }
}
