//! The program: everything is in `cli`.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    pacenote::cli::main().await
}
