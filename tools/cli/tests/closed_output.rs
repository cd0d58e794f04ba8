//! Standard output may be closed at any time: `segue … | head -1`.

use std::io::pipe;
use std::process::Command;

/// A command that prints at once and needs no lab.
fn status() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
    command
        .args(["lab", "status"])
        .env("SEGUE_XEN_HOST", "root@xen.invalid");
    command
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let output = status().stdout(writer).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn an_open_one_gets_the_text() {
    let output = status().output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "host: root@xen.invalid (SEGUE_XEN_HOST)\n");
}
