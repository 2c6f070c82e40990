use super::*;

fn config() -> EngineConfig {
    EngineConfig {
        block_size: 4,
        num_blocks: 16,
        max_num_seqs: 2,
        max_waiting: 8,
        max_model_len: u32::MAX,
        prefill_tokens_per_second: 100.0,
        decode_step: Duration::from_millis(10),
        time_scale: 1.0,
        adapters: 2,
    }
}

fn submit(engine: &Arc<Engine>, prompt: &[u8], answer_tokens: usize) -> Ticket {
    let answer = vec![b'x'; answer_tokens * TOKEN_BYTES];
    engine.submit(&Work { prompt, answer: &answer, seed: 0, adapter: None }).unwrap()
}

/// A prompt of `blocks` full blocks of 16 bytes and one token.
fn prompt(family: u8, blocks: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..blocks).flat_map(|i| [[family, i as u8]; 8]).flatten().collect();
    bytes.extend([family; 4]);
    bytes
}

#[tokio::test(start_paused = true)]
async fn time_to_first_token_is_queue_plus_prefill_and_tokens_follow_by_steps() {
    let engine = Engine::new(config());
    let start = Instant::now();
    let ms = || start.elapsed().as_millis();
    // 9 tokens: 90 ms. The second shares nothing and stands behind in the lane.
    let mut first = submit(&engine, &prompt(1, 2), 3);
    let mut second = submit(&engine, &prompt(2, 2), 1);
    let mut third = submit(&engine, &prompt(3, 2), 1);
    assert_eq!((engine.readings().running, engine.readings().waiting), (2, 1));
    let late = tokio::spawn(async move {
        second.prefill().await;
        second
    });
    first.prefill().await;
    assert_eq!(ms(), 90);
    assert_eq!(first.next().await, Some(0));
    assert_eq!(ms(), 90);
    assert_eq!(first.next().await, Some(1));
    assert_eq!(ms(), 100);
    assert_eq!(first.next().await, Some(2));
    assert_eq!(ms(), 110);
    assert_eq!(first.next().await, None);
    drop(first);
    assert_eq!((engine.readings().running, engine.readings().waiting), (2, 0));
    let second = late.await.unwrap();
    assert_eq!(ms(), 180);
    drop(second);
    third.prefill().await;
    assert_eq!(ms(), 270);
    drop(third);
    let readings = engine.readings();
    assert_eq!((readings.finished, readings.aborted, readings.used_blocks), (1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_prefix_is_found_and_saves_its_prefill() {
    let engine = Engine::new(config());
    let mut first = submit(&engine, &prompt(1, 3), 1);
    first.finish().await;
    assert_eq!(first.cached_tokens(), 0);
    drop(first);
    let start = Instant::now();
    let mut again = submit(&engine, &prompt(1, 3), 1);
    again.finish().await;
    assert_eq!((again.prompt_tokens(), again.cached_tokens()), (13, 12));
    assert_eq!(start.elapsed(), Duration::from_millis(10));
    // Another seed (salt or adapter) shares nothing.
    let salted = engine.submit(&Work { prompt: &prompt(1, 3), answer: b"", seed: 1, adapter: None });
    let mut salted = salted.unwrap();
    salted.finish().await;
    assert_eq!(salted.cached_tokens(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_prompt_token_is_always_computed() {
    let engine = Engine::new(config());
    let exact = &prompt(1, 2)[..32];
    submit(&engine, exact, 1).finish().await;
    let mut again = submit(&engine, exact, 1);
    again.finish().await;
    assert_eq!((again.prompt_tokens(), again.cached_tokens()), (8, 4));
}

#[tokio::test(start_paused = true)]
async fn decoded_blocks_are_cached_but_for_the_newest_token() {
    let engine = Engine::new(config());
    // 5 + 8 tokens: block 0 by the prompt, 1 and 2 by decoding; the 13th token is not computed.
    let mut first = submit(&engine, &prompt(1, 1), 8);
    first.finish().await;
    drop(first);
    let mut turn = prompt(1, 1);
    turn.extend([b'x'; 32]);
    turn.extend(b"next");
    let mut second = submit(&engine, &turn, 1);
    second.finish().await;
    assert_eq!(second.cached_tokens(), 12);
    drop(second);
    // 5 + 7 tokens fill three blocks, but the 12th token was never an input.
    let engine = Engine::new(config());
    submit(&engine, &prompt(1, 1), 7).finish().await;
    let mut second = submit(&engine, &turn, 1);
    second.finish().await;
    assert_eq!(second.cached_tokens(), 8);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_blocks_in_order_and_nothing_held_is_evicted() {
    let engine = Engine::new(EngineConfig { max_num_seqs: 10, ..config() });
    // 16 blocks: 9 + answer of 3 tokens in the same last block = 9; a second of the same kind does not fit.
    let mut first = submit(&engine, &prompt(1, 8), 3);
    let mut second = submit(&engine, &prompt(2, 8), 3);
    let mut small = submit(&engine, &prompt(3, 1), 3);
    let readings = engine.readings();
    assert_eq!((readings.running, readings.waiting, readings.used_blocks), (1, 2, 9));
    first.finish().await;
    drop(first);
    assert_eq!((engine.readings().running, engine.readings().waiting), (2, 0));
    second.finish().await;
    small.finish().await;
    drop((second, small));
    // 9 + 2 blocks were taken: the 7 never used, then four from the tail of the first, of which one
    // was not full. Five blocks of its head are still there.
    let mut again = submit(&engine, &prompt(1, 8), 1);
    again.finish().await;
    assert_eq!(again.cached_tokens(), 20);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_ticket_frees_its_place_in_every_phase() {
    let engine = Engine::new(EngineConfig { max_num_seqs: 1, ..config() });
    let adapter = |n| {
        engine.submit(&Work { prompt: &prompt(n, 2), answer: b"xxxx", seed: 0, adapter: Some(usize::from(n)) }).unwrap()
    };
    let first = adapter(0);
    let second = adapter(1);
    let mut third = adapter(0);
    assert_eq!(engine.readings().adapters, [(0, 1, 1), (1, 0, 1)]);
    drop(second);
    assert_eq!(engine.readings().adapters, [(0, 1, 1)]);
    // Dropped before its prefill: what it named is not in the cache.
    drop(first);
    third.finish().await;
    assert_eq!(third.cached_tokens(), 0);
    drop(third);
    let readings = engine.readings();
    assert_eq!((readings.running, readings.waiting, readings.used_blocks, readings.aborted), (0, 0, 0, 2));
    assert_eq!(readings.adapters, []);
}

#[tokio::test(start_paused = true)]
async fn a_follower_keeps_what_an_aborted_prefill_had_named() {
    let engine = Engine::new(config());
    let first = submit(&engine, &prompt(1, 2), 1);
    let mut follower = submit(&engine, &prompt(1, 2), 1);
    drop(first);
    follower.finish().await;
    assert_eq!(follower.cached_tokens(), 8);
    drop(follower);
    let mut third = submit(&engine, &prompt(1, 2), 1);
    third.finish().await;
    assert_eq!(third.cached_tokens(), 8);
}

#[tokio::test(start_paused = true)]
async fn limits_are_refusals_and_answers_are_cut() {
    let engine = Engine::new(EngineConfig { max_num_seqs: 1, max_waiting: 1, max_model_len: 20, ..config() });
    let refusal = engine.submit(&Work { prompt: &[0; 80], answer: b"", seed: 0, adapter: None }).err();
    assert_eq!(refusal, Some(Refusal::TooLong { tokens: 20, limit: 20 }));
    let cut = submit(&engine, &[0; 60], 100);
    assert_eq!(cut.answer_tokens(), 5);
    let _waiting = submit(&engine, &[0; 60], 1);
    let refusal = engine.submit(&Work { prompt: &[0; 60], answer: b"", seed: 0, adapter: None }).err();
    assert_eq!(refusal, Some(Refusal::QueueFull { limit: 1 }));
}

#[tokio::test]
async fn without_time_nothing_waits() {
    let engine = Engine::new(EngineConfig { time_scale: 0.0, ..config() });
    let mut ticket = submit(&engine, &prompt(1, 2), 20);
    assert!(tokio::time::timeout(Duration::from_millis(500), ticket.finish()).await.is_ok());
    assert_eq!(engine.readings().generated_tokens, 20);
}
