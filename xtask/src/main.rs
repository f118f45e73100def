//! Developer commands.
fn main() -> std::process::ExitCode {
    let lab = lab::lab::Lab::of_tree(std::path::Path::new(".")).unwrap();
    if let Err(e) = lab::scenarios::control(&lab) {
        eprintln!("{e:#}");
        return 1.into();
    }
    0.into()
}
