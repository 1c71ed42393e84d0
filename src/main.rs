//! The `langevin` command.

fn main() {}
