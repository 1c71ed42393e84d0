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
        // Every message of the library ends with its own cause.
        eprintln!("error: {error}");
        std::process::exit(code);
    }
}
