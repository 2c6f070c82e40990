//! Asking for the wanted families only, and servers that understand it, ignore it or get it wrong.

use super::*;

#[tokio::test]
async fn only_the_wanted_families_are_asked_for() {
    let mut server = Server::start(|path| Reply::Page(honest(PAGE, path))).await;
    let mut rig = Rig::one(settings(), server.address);
    assert_eq!(values(&rig.sample().await), GOOD);
    for _ in 0..5 {
        let path = server.asked().await;
        assert!(path.starts_with("/metrics?name%5B%5D=vllm%3Anum_requests_waiting&"), "{path}");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_server_that_loses_a_family_when_filtering_is_asked_for_the_whole_page() {
    let lossy = |path: &str| {
        Reply::Page(if path.contains('?') { "vllm:num_requests_running 4.0\n".into() } else { PAGE.into() })
    };
    let refusing = |path: &str| if path.contains('?') { Reply::Status(400) } else { page(path) };
    let garbling = |path: &str| if path.contains('?') { Reply::Page("<html>".into()) } else { page(path) };
    let servers = [Server::start(lossy).await, Server::start(refusing).await, Server::start(garbling).await];
    for mut server in servers {
        let mut rig = Rig::one(settings(), server.address);
        for _ in 0..6 {
            assert_eq!(values(&rig.sample().await), GOOD, "from the first poll on");
        }
        assert!(server.asked().await.contains('?'));
        for _ in 0..5 {
            assert_eq!(server.asked().await, "/metrics");
        }
        rig.end().await;
    }
}

#[tokio::test]
async fn a_family_that_the_server_does_not_have_is_looked_for_once() {
    let without = PAGE.replace("vllm:kv_cache_usage_perc", "vllm:something_else");
    let mut server = Server::start(move |path| Reply::Page(honest(&without, path))).await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..10 {
        assert_eq!(values(&rig.sample().await), (Some(10.0), Some(4.0), None));
    }
    let mut whole = 0;
    for _ in 0..10 {
        whole += usize::from(server.asked().await == "/metrics");
    }
    assert_eq!(whole, 1);
    rig.end().await;
}

#[tokio::test]
async fn nothing_wanted_means_no_connection() {
    let server = Server::start(page).await;
    let mut idle = settings();
    idle.wanted.clear();
    let mut rig = Rig::one(idle, server.address);
    let nothing = timeout(Duration::from_millis(50), rig.events.recv()).await;
    assert!(!matches!(nothing, Ok(Some(_))));
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    rig.end().await;
}

#[tokio::test]
async fn a_server_that_ignores_the_filter_is_read_all_the_same() {
    let mut server = Server::start(page).await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..6 {
        assert_eq!(values(&rig.sample().await), GOOD);
    }
    for _ in 0..6 {
        assert!(server.asked().await.contains("?name"), "nothing was missing, so there is no second request");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    rig.end().await;
}

#[tokio::test]
async fn names_are_those_of_the_metrics_that_plugins_need() {
    let cases: [(&[Metric], &[&str]); 3] = [
        (&[Metric::Running], &["vllm:num_requests_running"]),
        (&[Metric::Waiting, Metric::CacheInfo], &["vllm:num_requests_waiting", "vllm:cache_config_info"]),
        (&[Metric::Lora], &["vllm:lora_requests_info"]),
    ];
    for (wanted, names) in cases {
        let mut server = Server::start(page).await;
        let mut settings = settings();
        settings.wanted = wanted.iter().cloned().collect();
        let rig = Rig::one(settings, server.address);
        let query: Vec<String> = names.iter().map(|n| format!("name%5B%5D={}", n.replace(':', "%3A"))).collect();
        assert_eq!(server.asked().await, format!("/metrics?{}", query.join("&")));
        rig.end().await;
    }
}
