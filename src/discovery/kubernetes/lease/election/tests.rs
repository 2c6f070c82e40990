//! One candidate by hand, then several against a server over a bad network.

use proptest::prelude::*;

use super::*;

const TIMING: Timing =
    Timing { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) };

fn at(seconds: f64) -> Timestamp {
    Timestamp((seconds * 1e6) as u64)
}

fn candidate(name: &str) -> Election<u64> {
    Election::new(name, None, TIMING, 1)
}

/// What another candidate wrote at `seconds`.
fn others(holder: &str, seconds: f64) -> Record {
    let micros = (seconds * 1e6) as i64;
    let lasts = TIMING.lease;
    Record { holder: holder.into(), lasts, acquired: Some(0), renewed: Some(micros), transitions: 3 }
}

/// A candidate that leads since `seconds`.
fn leader(seconds: f64) -> Election<u64> {
    let mut e = candidate("me");
    assert_eq!(e.next(at(seconds), 0), Step::Read);
    e.absent(at(seconds));
    let Step::Create(record) = e.next(at(seconds), 7) else { panic!("it creates") };
    e.wrote(record, 1, at(seconds), at(seconds));
    assert_eq!(e.role(), Role::Leader);
    e
}

#[test]
fn the_first_one_creates_and_renews() {
    let mut e = leader(1.0);
    assert_eq!(e.next(at(1.0), 8), Step::Wait(at(3.0)));
    let Step::Update(1, record) = e.next(at(3.0), 9) else { panic!("it renews") };
    assert_eq!(
        record,
        Record { holder: "me".into(), lasts: TIMING.lease, acquired: Some(7), renewed: Some(9), transitions: 0 }
    );
    e.wrote(record, 2, at(3.0), at(3.4));
    assert_eq!(e.next(at(3.4), 9), Step::Wait(at(5.0)));
}

#[test]
fn a_held_lease_is_taken_when_it_has_not_changed_for_its_time_and_not_by_the_round() {
    let mut e = candidate("me");
    assert_eq!(e.next(at(0.0), 0), Step::Read);
    e.found(others("x", 0.0), 1, true, at(0.0));
    // The holder's clock is an hour ahead; nobody minds.
    e.found(others("x", 3600.0), 2, false, at(1.0));
    let mut now = at(1.0);
    let mut reads = 0;
    loop {
        match e.next(now, 5) {
            Step::Wait(until) => now = until,
            Step::Read => {
                reads += 1;
                e.found(others("x", 3600.0), 2, true, now);
            }
            Step::Update(handle, record) => {
                assert_eq!((now, handle), (at(16.0), 2), "15 s after the change, to the microsecond");
                assert_eq!((record.transitions, record.acquired), (4, Some(5)));
                break;
            }
            Step::Create(_) => panic!("it exists"),
        }
    }
    assert!((5..=8).contains(&reads), "{reads} reads in 15 s");
    // Whoever was quicker is seen at once.
    e.conflict(at(16.0));
    assert_eq!(e.next(at(16.0), 5), Step::Read);
    e.found(others("y", 16.0), 3, true, at(16.1));
    assert_eq!((e.role(), e.holder()), (Role::Standby, "y"));
    assert!(matches!(e.next(at(16.1), 5), Step::Wait(_)));
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let mut e = candidate("me");
    e.found(others("x", 0.0), 1, true, at(0.0));
    assert!(matches!(e.next(at(0.5), 0), Step::Wait(_)));
    e.found(Record { lasts: Duration::from_secs(1), ..others("", 0.6) }, 2, false, at(0.6));
    assert!(matches!(e.next(at(0.6), 0), Step::Update(2, _)));
}

#[test]
fn the_duration_in_the_record_counts_and_a_missing_one_is_ours() {
    for (lasts, free) in [(Duration::from_secs(60), 60.0), (Duration::ZERO, 15.0)] {
        let mut e = candidate("me");
        e.found(Record { lasts, ..others("x", 0.0) }, 1, true, at(0.0));
        e.found(Record { lasts, ..others("x", 0.0) }, 1, true, at(free - 0.1));
        assert_eq!(e.next(at(free - 0.1), 0), Step::Wait(at(free)));
        assert!(matches!(e.next(at(free), 0), Step::Update(..)));
    }
}

#[test]
fn a_restarted_container_takes_what_its_predecessor_left() {
    let mut e: Election<u64> = Election::new("pod-1_b", Some("pod-1"), TIMING, 1);
    e.found(others("pod-1_a", 0.0), 1, true, at(0.0));
    assert!(matches!(e.next(at(0.0), 0), Step::Update(1, _)));
    // Not what is of another pod whose name begins alike.
    let mut e: Election<u64> = Election::new("pod-1_b", Some("pod-1"), TIMING, 1);
    e.found(others("pod-10_a", 0.0), 1, true, at(0.0));
    assert!(matches!(e.next(at(0.0), 0), Step::Wait(_)));
    // Nor what appears later: that process lives.
    e.found(others("pod-1_a", 1.0), 2, true, at(1.0));
    assert!(matches!(e.next(at(1.0), 0), Step::Wait(_)));
    // Without a pod's name nothing is assumed.
    let mut e: Election<u64> = Election::new("pod-1_b", Some(""), TIMING, 1);
    e.found(others("_a", 0.0), 1, true, at(0.0));
    assert!(matches!(e.next(at(0.0), 0), Step::Wait(_)));
}

#[test]
fn a_leader_without_api_server_leads_on_unconfirmed_and_yields_to_the_first_other_holder() {
    let mut e = leader(0.0);
    let mut now = at(0.0);
    while now < at(60.0) {
        match e.next(now, 0) {
            Step::Wait(until) => now = until,
            _ => e.failed(Failure::Everybodys, now),
        }
        e.tick(now);
        assert_eq!(e.role(), if now < at(10.0) { Role::Leader } else { Role::Unconfirmed }, "{now:?}");
    }
    // Back, and nobody took it: the same leader, sure again.
    let mut back = e;
    back.found(others("me", 0.0), 1, true, now);
    let Step::Update(1, record) = back.next(now, 0) else { panic!("it renews") };
    back.wrote(record, 2, now, now);
    assert_eq!(back.role(), Role::Leader);

    let mut e = leader(0.0);
    e.failed(Failure::Everybodys, at(2.0));
    e.tick(at(30.0));
    assert!(e.role().leads());
    e.found(others("x", 20.0), 5, true, at(31.0));
    assert_eq!(e.role(), Role::Standby);
}

#[test]
fn a_leader_whose_trouble_is_its_own_steps_down_when_its_time_is_over() {
    let mut e = leader(0.0);
    e.failed(Failure::Own, at(2.0));
    e.failed(Failure::Everybodys, at(5.0));
    e.tick(at(9.9));
    assert_eq!(e.role(), Role::Leader, "another one cannot lead yet");
    e.tick(at(10.0));
    assert_eq!(e.role(), Role::Standby);
    // It reads before it writes again.
    assert_eq!(e.next(at(11.0), 0), Step::Read);
}

#[test]
fn a_late_answer_makes_no_leader() {
    let mut e = candidate("me");
    e.absent(at(0.0));
    let Step::Create(record) = e.next(at(0.0), 0) else { panic!("it creates") };
    e.wrote(record, 1, at(0.0), at(12.0));
    assert_eq!(e.role(), Role::Unconfirmed, "the time counts from before the call");
}

#[test]
fn conflicts_without_end_are_not_hurried() {
    let mut e = leader(0.0);
    let mut calls = 0;
    let mut now = at(2.0);
    while now < at(62.0) {
        match e.next(now, 0) {
            Step::Wait(until) => now = until,
            Step::Read => e.found(others("me", now.0 as f64), 1, true, now),
            _ => {
                calls += 1;
                e.conflict(now);
            }
        }
    }
    assert!(calls < 40, "{calls} writes in a minute");
}

#[test]
fn a_resignation_gives_back_only_what_is_held() {
    let mut e = leader(0.0);
    let Some(Step::Update(1, record)) = e.resign(9) else { panic!("it releases") };
    assert_eq!((record.holder.as_str(), record.lasts, record.renewed), ("", Duration::from_secs(1), Some(9)));
    e.wrote(record, 2, at(1.0), at(1.0));
    assert_eq!((e.role(), e.resign(9)), (Role::Standby, None));

    let mut e = leader(0.0);
    assert!(e.resign(9).is_some());
    e.conflict(at(1.0));
    assert_eq!(e.resign(9), Some(Step::Read), "an own renewal whose answer was lost");
    e.found(others("x", 1.0), 3, true, at(1.0));
    assert_eq!(e.resign(9), None);
    assert_eq!(candidate("me").resign(9), None);
}

// Several candidates.

/// Length of a step in microseconds.
const TICK: u64 = 20_000;
const CALL: u64 = 5_000_000;

#[derive(Clone)]
enum Reply {
    Found(Record, u64),
    Absent,
    Wrote(Record, u64),
    Conflict,
    Failed(Failure),
}

/// A call on its way to the server. Nobody can take it back.
struct Request {
    from: (usize, u64),
    step: Step<u64>,
    commits: u64,
    /// When the answer arrives; `None` if it is lost.
    answers: Option<u64>,
}

struct Waiting {
    began: u64,
    reply: Option<(u64, Reply)>,
}

struct Process {
    incarnation: u64,
    /// `None` while it is down, until the time given.
    election: Option<Election<u64>>,
    up: u64,
    stopping: bool,
    call: Option<Waiting>,
    /// Cut off until.
    cut: u64,
    /// Refused until.
    refused: u64,
    /// States of the record that its watch told.
    told: usize,
}

struct World {
    random: fastrand::Rng,
    now: u64,
    server: Option<(Record, u64)>,
    version: u64,
    /// Every state of the record.
    history: Vec<(Record, u64)>,
    away: u64,
    requests: Vec<Request>,
    processes: Vec<Process>,
    /// Chance of trouble in a second, in percent.
    trouble: u64,
}

impl World {
    fn new(seed: u64, processes: usize, trouble: u64) -> Self {
        let process = |_| Process {
            incarnation: 0,
            election: None,
            up: 0,
            stopping: false,
            call: None,
            cut: 0,
            refused: 0,
            told: 0,
        };
        Self {
            random: fastrand::Rng::with_seed(seed),
            now: 0,
            server: None,
            version: 0,
            history: Vec::new(),
            away: 0,
            requests: Vec::new(),
            processes: (0..processes).map(process).collect(),
            trouble,
        }
    }

    fn chance(&mut self, percent_per_second: u64) -> bool {
        self.random.u64(0..100 * 1_000_000 / TICK) < percent_per_second
    }

    /// Milliseconds from the network, mostly few.
    fn delay(&mut self) -> u64 {
        let most = if self.trouble > 0 && self.random.u8(0..10) == 0 { 9_000 } else { 60 };
        self.random.u64(0..=most) * 1000
    }

    fn lost(&mut self) -> bool {
        self.trouble > 0 && self.random.u8(0..12) == 0
    }

    fn trouble(&mut self) {
        let trouble = self.trouble;
        if self.chance(trouble / 3) {
            self.away = self.now + self.random.u64(0..40_000_000);
        }
        for i in 0..self.processes.len() {
            if self.chance(trouble) {
                self.processes[i].cut = self.now + self.random.u64(0..30_000_000);
            }
            if self.chance(trouble / 3) {
                self.processes[i].refused = self.now + self.random.u64(0..30_000_000);
            }
            if self.chance(trouble) {
                // Killed.
                let down = self.random.u64(0..20_000_000);
                let process = &mut self.processes[i];
                (process.election, process.call, process.up) = (None, None, self.now + down);
            }
            if self.chance(trouble) {
                self.processes[i].stopping = true;
            }
        }
    }

    fn commit(&mut self) {
        let now = self.now;
        let (ripe, rest) = std::mem::take(&mut self.requests).into_iter().partition(|r| r.commits <= now);
        self.requests = rest;
        let mut ripe: Vec<Request> = ripe;
        ripe.sort_by_key(|r| r.commits);
        for request in ripe {
            let current = self.server.as_ref().map(|(_, version)| *version);
            let reply = match request.step {
                Step::Read => match self.server.clone() {
                    Some((record, version)) => Reply::Found(record, version),
                    None => Reply::Absent,
                },
                Step::Create(record) if current.is_none() => self.write(record),
                Step::Update(version, record) if current == Some(version) => self.write(record),
                _ => Reply::Conflict,
            };
            let (i, incarnation) = request.from;
            let process = &mut self.processes[i];
            if process.incarnation == incarnation
                && let Some(waiting) = &mut process.call
                && let Some(answers) = request.answers
                && waiting.reply.is_none()
                && answers < waiting.began + CALL
            {
                waiting.reply = Some((answers, reply));
            }
        }
    }

    fn write(&mut self, record: Record) -> Reply {
        self.version += 1;
        self.server = Some((record.clone(), self.version));
        self.history.push((record.clone(), self.version));
        Reply::Wrote(record, self.version)
    }

    fn send(&mut self, i: usize, step: Step<u64>) {
        let process = &self.processes[i];
        let from = (i, process.incarnation);
        let (now, refused) = (self.now, process.refused > self.now);
        let reachable = process.cut <= now && self.away <= now;
        let reply = refused.then_some((now, Reply::Failed(Failure::Own)));
        if reachable && !refused && !self.lost() {
            let commits = now + self.delay();
            let answers = (!self.lost()).then(|| commits + self.delay());
            self.requests.push(Request { from, step, commits, answers });
        }
        self.processes[i].call = Some(Waiting { began: now, reply });
    }

    fn act(&mut self, i: usize) {
        let now = Timestamp(self.now);
        if self.processes[i].election.is_none() && self.processes[i].up <= self.now {
            let seed = self.random.u64(..);
            let process = &mut self.processes[i];
            process.incarnation += 1;
            process.stopping = false;
            let (pod, identity) = (format!("pod-{i}"), format!("pod-{i}_{}", process.incarnation));
            process.election = Some(Election::new(identity, Some(&pod), TIMING, seed));
        }
        let Some(mut election) = self.processes[i].election.take() else { return };
        // A watch tells the states in order, late; one that is opened again may begin in the past.
        let (told, free) = (self.processes[i].told, self.processes[i].call.is_none());
        if !election.role().leads() && free && self.processes[i].cut <= self.now && self.random.u8(0..20) == 0 {
            if let Some((record, version)) = self.history.get(told).cloned() {
                election.found(record, version, false, now);
            }
            let back = if self.trouble > 0 && self.random.u8(0..20) == 0 { self.random.usize(0..5) } else { 0 };
            self.processes[i].told = (told + 1).min(self.history.len()).saturating_sub(back);
        }
        if let Some(waiting) = self.processes[i].call.take() {
            let reply = match &waiting.reply {
                Some((arrives, reply)) if *arrives <= self.now => Some(reply.clone()),
                _ if self.now >= waiting.began + CALL => Some(Reply::Failed(Failure::Everybodys)),
                _ => None,
            };
            match reply {
                Some(Reply::Found(record, version)) => election.found(record, version, true, now),
                Some(Reply::Absent) => election.absent(now),
                Some(Reply::Wrote(record, version)) => election.wrote(record, version, Timestamp(waiting.began), now),
                Some(Reply::Conflict) => election.conflict(now),
                Some(Reply::Failed(failure)) => election.failed(failure, now),
                None => self.processes[i].call = Some(waiting),
            }
        }
        election.tick(now);
        let mut gone = false;
        if self.processes[i].call.is_none() {
            let stopping = self.processes[i].stopping;
            let step = match stopping {
                true => election.resign(0),
                false => Some(election.next(now, self.now as i64)),
            };
            match step {
                Some(Step::Wait(until)) => assert!(until > now, "it would spin"),
                Some(step) => self.send(i, step),
                None => gone = true,
            }
        }
        let restart = self.random.u64(0..5_000_000);
        let process = &mut self.processes[i];
        if gone {
            (process.call, process.up) = (None, self.now + restart);
        } else {
            process.election = Some(election);
        }
    }

    fn roles(&self) -> Vec<Role> {
        self.processes.iter().filter_map(|p| p.election.as_ref()).map(Election::role).collect()
    }

    fn run(&mut self, until: u64, mut check: impl FnMut(&Self)) {
        while self.now < until {
            self.now += TICK;
            self.trouble();
            self.commit();
            for i in 0..self.processes.len() {
                self.act(i);
            }
            check(self);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Never two that are sure; and when the trouble is over, one leads and nobody beside it.
    #[test]
    fn at_most_one_is_sure_to_lead(seed: u64, processes in 2_usize..5, trouble in 1_u64..12) {
        let mut world = World::new(seed, processes, trouble);
        world.run(120_000_000, |world| {
            let sure = world.roles().iter().filter(|role| **role == Role::Leader).count();
            assert!(sure <= 1, "{sure} lead at {} ms", world.now / 1000);
        });
        // Trouble that was begun ends by itself, within 40 s; a lease runs out 15 s later.
        world.trouble = 0;
        world.run(120_000_000 + 75_000_000, |_| {});
        let leading: Vec<Role> = world.roles().into_iter().filter(|role| role.leads()).collect();
        prop_assert_eq!(leading, vec![Role::Leader]);
        // In peace the leader stays.
        let transitions = world.server.as_ref().map(|(record, _)| record.transitions);
        world.run(world.now + 30_000_000, |world| assert_eq!(world.roles().iter().filter(|r| r.leads()).count(), 1));
        prop_assert_eq!(world.server.as_ref().map(|(record, _)| record.transitions), transitions);
    }
}
