//! The `langevin` command.

mod cli;

use clap::Parser;

fn main() {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if let Err(error) = cli.run() {
        let code = error.exit_code();
        // anyhow walks the chain of sources.
        eprintln!("error: {:#}", anyhow::Error::from(error));
        std::process::exit(code);
    }
}
