//! What servers answer, and what comes of it.

use super::*;

#[tokio::test]
async fn a_good_page_is_reported_over_one_kept_connection() {
    let server = Server::start(page).await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..20 {
        match rig.event().await {
            Event::Sample(slot, generation, sample) => {
                assert_eq!((slot, generation, values(&sample)), (Slot(0), 1, GOOD));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    rig.end().await;
}

#[tokio::test]
async fn the_age_of_the_last_sample_shows_that_polls_fail() {
    let polls = AtomicUsize::new(0);
    let server =
        Server::start(move |p| if polls.fetch_add(1, Ordering::SeqCst) < 3 { page(p) } else { Reply::Status(500) })
            .await;
    let mut rig = Rig::one(settings(), server.address);
    rig.clock.advance(Duration::from_secs(3));
    let mut last = Timestamp::default();
    loop {
        match rig.event().await {
            Event::Sample(_, _, sample) => last = sample.taken_at,
            Event::Failed(_, _, cause) => break assert_eq!(cause, PollError::Status),
        }
    }
    assert_eq!(last, Timestamp::from_millis(3000));
    rig.clock.advance(Duration::from_secs(2));
    for _ in 0..3 {
        assert_eq!(rig.failure().await, PollError::Status);
    }
    rig.end().await;
}

#[tokio::test]
async fn pages_of_other_kinds_are_parse_errors() {
    for body in
        ["<html><body>Hello</body></html>", "<html>\nup 1\n</html>\n", "{\"detail\":\"x\"}", "\u{0}\u{1}\n\u{fffd}x"]
    {
        assert_eq!(fails(settings(), |_| Reply::Page(body.into())).await, PollError::Parse, "{body}");
    }
    let raw = |text: &str| {
        let bytes = text.as_bytes().to_vec();
        move |_: &str| Reply::Raw(bytes.clone())
    };
    assert_eq!(fails(settings(), raw("SSH-2.0-OpenSSH_9.2\r\n")).await, PollError::Parse);
    let gzip = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x1f";
    assert_eq!(fails(settings(), raw(gzip)).await, PollError::Parse);
    assert_eq!(fails(settings(), |_| Reply::Page(String::new())).await, PollError::MissingFamily);
    assert_eq!(fails(settings(), |_| Reply::Page("up 1\n".into())).await, PollError::MissingFamily);
}

#[tokio::test]
async fn half_a_page_is_no_page() {
    let half = &PAGE[..PAGE.find("10.0").unwrap() + 1];
    // Announced longer than sent, and without any length, so that only the missing newline shows it.
    let announced = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{half}", PAGE.len()).into_bytes();
    assert_eq!(fails(settings(), move |_| Reply::Raw(announced.clone())).await, PollError::Connect);
    let chunked =
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{PAGE}\r\n", PAGE.len()).into_bytes();
    assert_eq!(fails(settings(), move |_| Reply::Raw(chunked.clone())).await, PollError::Connect);
    let until_close = format!("HTTP/1.0 200 OK\r\n\r\n{half}").into_bytes();
    assert_eq!(fails(settings(), move |_| Reply::Raw(until_close.clone())).await, PollError::Parse);
}

#[tokio::test]
async fn a_page_until_the_end_of_the_connection_counts() {
    let raw = format!("HTTP/1.0 200 OK\r\n\r\n{PAGE}").into_bytes();
    let server = Server::start(move |_| Reply::Raw(raw.clone())).await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..3 {
        assert_eq!(values(&rig.sample().await), GOOD);
    }
    rig.end().await;
}

#[tokio::test]
async fn huge_pages_are_cut_off() {
    let mut small = settings();
    small.max_page = 64 * 1024;
    assert_eq!(fails(small.clone(), |_| Reply::Endless).await, PollError::TooLarge);
    let gigabyte = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n".to_vec();
    assert_eq!(fails(settings(), move |_| Reply::Raw(gigabyte.clone())).await, PollError::TooLarge);
    let head = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 100 * 1024]].concat();
    assert_eq!(fails(small, move |_| Reply::Raw(head.clone())).await, PollError::Parse);
}

#[tokio::test]
async fn a_missing_or_infinite_value_is_no_value() {
    let text = PAGE.replace("10.0", "NaN").replace("0.5", "+Inf");
    let server = Server::start(move |_| Reply::Page(text.clone())).await;
    let mut rig = Rig::one(settings(), server.address);
    assert_eq!(values(&rig.sample().await), (None, Some(4.0), None));
    rig.end().await;
}

#[tokio::test]
async fn errors_of_the_server_and_of_the_way_there_are_told_apart() {
    for status in [404, 500, 302, 204] {
        assert_eq!(fails(settings(), move |_| Reply::Status(status)).await, PollError::Status, "{status}");
    }
    let mut hasty = settings();
    hasty.timeout = Duration::from_millis(30);
    assert_eq!(fails(hasty, |_| Reply::Hang).await, PollError::Timeout);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut rig = Rig::one(settings(), nobody);
    assert_eq!(rig.failure().await, PollError::Connect);
    rig.end().await;
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced_without_a_failure() {
    let raw = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{PAGE}", PAGE.len()).into_bytes();
    // Says nothing of closing, and closes after every answer.
    let server = Server::start(move |_| Reply::Raw(raw.clone())).await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..10 {
        assert_eq!(values(&rig.sample().await), GOOD);
    }
    assert!(server.connections.load(Ordering::SeqCst) >= 10);
    rig.end().await;
}

#[tokio::test]
async fn the_port_of_the_page_may_differ_from_that_of_inference() {
    let mut server = Server::start(page).await;
    let mut other = settings();
    other.port = Some(server.address.port());
    other.path = "/custom?format=text".into();
    let mut rig = Rig::one(other, SocketAddr::new(server.address.ip(), 1));
    assert_eq!(values(&rig.sample().await), GOOD);
    assert!(server.asked().await.starts_with("/custom?format=text&name"));
    rig.end().await;
}

#[test]
fn causes_have_distinct_labels() {
    let labels: BTreeSet<_> = PollError::ALL.iter().map(|c| c.as_str()).collect();
    assert_eq!(labels.len(), PollError::ALL.len());
}

/// What servers say that close a connection that was idle for too long may cross a request.
#[tokio::test]
async fn a_request_timeout_on_a_kept_connection_is_no_answer() {
    let timeout = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n";
    let requests = AtomicUsize::new(0);
    let server = Server::start(move |p| match requests.fetch_add(1, Ordering::SeqCst) % 2 {
        0 => page(p),
        _ => Reply::Raw(timeout.to_vec()),
    })
    .await;
    let mut rig = Rig::one(settings(), server.address);
    for _ in 0..6 {
        assert_eq!(values(&rig.sample().await), GOOD);
    }
    rig.end().await;
    assert_eq!(fails(settings(), |_| Reply::Raw(timeout.to_vec())).await, PollError::Status, "on a new one it is");
}
