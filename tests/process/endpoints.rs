//! The endpoints file: broken at the start, changed while running, broken while running.

use super::harness::{Folder, Picker, listed, run, until};

#[tokio::test]
async fn a_broken_file_at_the_start_lists_every_problem_and_serves_nothing() {
    let folder = Folder::new(
        "endpoints:\n\
         - {name: a, address: 192.0.2.1, port: 8000}\n\
         - {name: b, address: 192.0.2.1, port: 8000}\n\
         - {name: c, address: model-server.local, port: 8000}\n\
         - {name: d, address: 192.0.2.4, port: 70000}\n\
         - {name: a, address: 192.0.2.5, port: 8000, colour: red}\n",
    );
    let ended = run(&[
        "--config-file",
        &folder.text("config.yaml"),
        "--grpc-port=0",
        "--grpc-health-port=0",
        "--metrics-port=0",
    ])
    .await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    let file = folder.text("endpoints.yaml");
    ended.says(&[
        &format!("{file}:3:"),
        "192.0.2.1:8000 is already listed on line 2",
        &format!("{file}:4:"),
        "`model-server.local` is not an IP address",
        &format!("{file}:5:"),
        "is not a port",
        &format!("{file}:6:"),
        "`default/a` is already defined on line 2",
        "colour",
    ]);
    assert!(!ended.err.contains("pointsman is serving"), "{}", ended.err);

    for text in ["", "endpoints: 5", "endpoints: [", "\u{0}", "endpoints:\n- {}\n"] {
        folder.write("endpoints.yaml", text);
        let ended = run(&["--config-file", &folder.text("config.yaml")]).await;
        assert_eq!(ended.code, Some(64), "{text:?}: {ended:?}");
        ended.says(&[&file]);
    }
    std::fs::remove_file(folder.path("endpoints.yaml")).unwrap();
    let missing = run(&["--config-file", &folder.text("config.yaml")]).await;
    assert_eq!(missing.code, Some(64), "{missing:?}");
    missing.says(&["config.yaml:4:", &file, "No such file"]);
}

#[tokio::test]
async fn changes_are_followed_and_broken_ones_change_nothing() {
    const READY: &str = r#"llm_d_epp_ready_endpoints{name="epp"}"#;
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &["--drain-timeout=0s"]).await;
    assert_eq!(picker.metric(READY).await, Some(4.0));
    folder.write("endpoints.yaml", &listed(&["192.0.2.1", "192.0.2.9"]));
    until("two endpoints", async || picker.metric(READY).await == Some(2.0)).await;

    folder.write("endpoints.yaml", &listed(&["192.0.2.7", "192.0.2.8", "192.0.2.7"]));
    picker.log.with(&["keeping the last good one", "192.0.2.7:8000 is already listed"]).await;
    assert_eq!(picker.metric(READY).await, Some(2.0));
    std::fs::remove_file(folder.path("endpoints.yaml")).unwrap();
    picker.log.with(&["keeping the last good one", "cannot read"]).await;
    assert_eq!(picker.metric(READY).await, Some(2.0));

    folder.write("endpoints.yaml", "endpoints: []");
    until("an empty pool", async || picker.metric(READY).await == Some(0.0)).await;
    folder.write("endpoints.yaml", &listed(&["2001:db8::1"]));
    until("one endpoint", async || picker.metric(READY).await == Some(1.0)).await;
    picker.stop().await;
}
