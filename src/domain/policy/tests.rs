//! Precedence and chances against an oracle that follows the text of the specification.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::*;

fn target(model: &str, weight: Option<u32>) -> RewriteTarget {
    RewriteTarget { model: model.into(), weight }
}

fn rule(models: &[&str], targets: &[(&str, Option<u32>)]) -> RewriteRule {
    RewriteRule {
        models: models.iter().map(|m| (*m).to_owned()).collect(),
        targets: targets.iter().map(|(model, weight)| target(model, *weight)).collect(),
    }
}

fn rewrite(name: &str, created: i64, rules: Vec<RewriteRule>) -> RewriteSpec {
    RewriteSpec { name: name.into(), created, rules }
}

fn only(rewrites: Vec<RewriteSpec>) -> Policies {
    Policies::new(Vec::new(), rewrites)
}

/// Object and target that decide for `model`, where there is nothing to draw.
fn decided<'p>(policies: &'p Policies, model: &str) -> Option<(&'p str, Option<&'p str>)> {
    let rule = policies.rule(model)?;
    Some((rule.rewrite(), rule.choose(|_| panic!("there is no choice"))))
}

/// How often each number of the whole range chooses each target.
fn shares(policies: &Policies, model: &str) -> Vec<(String, u64)> {
    let rule = policies.rule(model).expect("a rule");
    let mut sum = 1;
    rule.choose(|below| {
        sum = below;
        0
    });
    let mut shares: Vec<(String, u64)> = Vec::new();
    for drawn in 0..sum {
        let chosen = rule.choose(|_| drawn).expect("a target").to_owned();
        match shares.iter_mut().find(|(model, _)| *model == chosen) {
            Some((_, count)) => *count += 1,
            None => shares.push((chosen, 1)),
        }
    }
    shares
}

#[test]
fn objectives_are_found_by_name() {
    let named = |name: &str, priority| ObjectiveSpec { name: name.into(), priority };
    let policies = Policies::new(vec![named("batch", -1), named("chat", 10), named("zero", 0)], Vec::new());
    assert_eq!(
        ["batch", "chat", "zero", "other", ""].map(|n| policies.priority(n)),
        [Some(-1), Some(10), Some(0), None, None]
    );
    assert_eq!(Policies::default().priority("batch"), None);
    let twice = Policies::new(vec![named("a", 3), named("a", -2)], Vec::new());
    assert_eq!(twice, Policies::new(vec![named("a", -2), named("a", 3)], Vec::new()), "whatever the order");
}

#[test]
fn exact_beats_generic_whichever_object_it_is_in() {
    let policies = only(vec![
        rewrite("old", 1, vec![rule(&[], &[("everything", None)])]),
        rewrite("new", 9, vec![rule(&["a", "b"], &[("exact", None)])]),
    ]);
    assert_eq!(decided(&policies, "a"), Some(("new", Some("exact"))));
    assert_eq!(decided(&policies, "b"), Some(("new", Some("exact"))), "matches of a rule are alternatives");
    assert_eq!(decided(&policies, "c"), Some(("old", Some("everything"))));
    assert_eq!(decided(&Policies::default(), "a"), None);
}

#[test]
fn the_oldest_wins_then_the_name_then_the_first_rule() {
    let to = |target: &str| rule(&["m"], &[(target, None)]);
    let young = || rewrite("a", 5, vec![to("young")]);
    let old = || rewrite("z", 4, vec![to("first"), to("second")]);
    let twin = || rewrite("y", 4, vec![to("twin")]);
    assert_eq!(decided(&only(vec![young(), old()]), "m"), Some(("z", Some("first"))));
    for order in [vec![young(), old(), twin()], vec![twin(), old(), young()], vec![old(), young(), twin()]] {
        assert_eq!(decided(&only(order), "m"), Some(("y", Some("twin"))), "ties go to the smaller name");
    }
    assert_eq!(only(vec![young(), old()]), only(vec![old(), young()]), "the order of arrival says nothing");
}

#[test]
fn a_rule_without_targets_exempts_its_models() {
    let generic = rewrite("all", 1, vec![rule(&[], &[("t", None)])]);
    let policies = only(vec![generic, rewrite("but", 2, vec![rule(&["m"], &[])])]);
    assert_eq!(decided(&policies, "m"), Some(("but", None)));
    assert_eq!(decided(&policies, "n"), Some(("all", Some("t"))));
}

#[test]
fn chances_follow_the_weights() {
    let chances = |targets: &[(&str, Option<u32>)]| {
        let policies = only(vec![rewrite("r", 0, vec![rule(&[], targets)])]);
        let shares = shares(&policies, "m");
        let shown = shares.iter().map(|(model, n)| format!("{model} {n}")).collect::<Vec<_>>().join(", ");
        (shown, policies.warnings().len())
    };
    assert_eq!(chances(&[("a", Some(7)), ("b", Some(3))]), ("a 7, b 3".into(), 0));
    assert_eq!(chances(&[("a", None), ("b", None), ("c", None)]), ("a 1, b 1, c 1".into(), 0));
    assert_eq!(chances(&[("a", Some(2)), ("b", None), ("c", Some(1))]), ("a 2, c 1".into(), 1), "mixed");
    assert_eq!(chances(&[("a", Some(0)), ("b", Some(0))]), ("a 1, b 1".into(), 0), "a sum of 0 is no weight");
    assert_eq!(chances(&[("a", Some(5)), ("b", None)]), ("a 1".into(), 1), "no choice is no draw");
    let policies = only(vec![rewrite("canary", 0, vec![rule(&[], &[("a", Some(1)), ("b", None)])])]);
    let [warning] = policies.warnings() else { panic!("{:?}", policies.warnings()) };
    assert!(warning.contains("`canary`, rules[0]: 1 of 2 targets"), "{warning}");
}

#[test]
fn the_largest_weights_do_not_overflow() {
    let targets: Vec<_> = (0..64).map(|i| target(&format!("t{i}"), Some(u32::MAX))).collect();
    let policies = only(vec![rewrite("r", 0, vec![RewriteRule { models: Vec::new(), targets }])]);
    let rule = policies.rule("m").unwrap();
    assert_eq!(rule.choose(|below| below - 1), Some("t63"));
    assert_eq!(rule.choose(|below| below / 2), Some("t32"));
    assert_eq!(rule.choose(|below| below), None, "a wrong draw is no panic");
}

fn any_rewrites() -> impl Strategy<Value = Vec<RewriteSpec>> {
    const MODELS: [&str; 4] = ["m0", "m1", "m2", "m3"];
    let models = proptest::collection::vec(proptest::sample::select(&MODELS[..]), 0..3);
    let weight = prop_oneof![2 => Just(None), 1 => Just(Some(0)), 3 => (1u32..5).prop_map(Some)];
    let targets = proptest::collection::vec((0u8..4, weight), 0..4);
    let rule = (models, targets).prop_map(|(models, targets)| RewriteRule {
        models: models.into_iter().map(str::to_owned).collect(),
        targets: targets.into_iter().map(|(t, weight)| target(&format!("t{t}"), weight)).collect(),
    });
    let rules = proptest::collection::vec(rule, 0..4);
    // Few creation times, so that there are ties; names are unique, as in a namespace.
    proptest::collection::vec((0i64..3, rules), 0..6).prop_map(|all| {
        let named = all.into_iter().enumerate();
        named.map(|(i, (created, rules))| rewrite(&format!("r{}", (i * 7) % 6), created, rules)).collect()
    })
}

/// The rule for `model` by the words of protocol 2.7: look at all that match, keep the best.
fn oracle<'s>(rewrites: &'s [RewriteSpec], model: &str) -> Option<(&'s str, &'s RewriteRule)> {
    let all = rewrites.iter().flat_map(|spec| spec.rules.iter().enumerate().map(move |(i, rule)| (spec, i, rule)));
    let matching = all.filter(|(_, _, rule)| rule.models.is_empty() || rule.models.iter().any(|m| m == model));
    let best = matching.max_by_key(|(spec, i, rule)| {
        (!rule.models.is_empty(), Reverse(spec.created), Reverse(spec.name.clone()), Reverse(*i))
    });
    best.map(|(spec, _, rule)| (spec.name.as_str(), rule))
}

/// Chances of each target by the words of protocol 2.7, as parts of a sum.
fn chances(rule: &RewriteRule) -> Vec<(String, u64)> {
    let total: u32 = rule.targets.iter().filter_map(|t| t.weight).sum();
    let part = |t: &RewriteTarget| if total == 0 { 1 } else { u64::from(t.weight.unwrap_or(0)) };
    let mut chances: Vec<(String, u64)> = Vec::new();
    for target in rule.targets.iter().filter(|t| part(t) > 0) {
        match chances.iter_mut().find(|(model, _)| *model == target.model) {
            Some((_, sum)) => *sum += part(target),
            None => chances.push((target.model.clone(), part(target))),
        }
    }
    // A single target needs no draw, and then its weight is not asked for.
    let possible = rule.targets.iter().filter(|t| part(t) > 0).count();
    if possible == 1 {
        chances[0].1 = 1;
    }
    chances
}

proptest! {
    #[test]
    fn the_specification_decides(rewrites in any_rewrites()) {
        let policies = only(rewrites.clone());
        for model in ["m0", "m1", "m2", "m3", "other", ""] {
            let expected = oracle(&rewrites, model);
            let found = policies.rule(model);
            prop_assert_eq!(found.map(Rule::rewrite), expected.map(|(name, _)| name), "{}", model);
            let (Some(found), Some((_, rule))) = (found, expected) else { continue };
            if rule.targets.is_empty() {
                prop_assert_eq!(found.choose(|_| 0), None);
            } else {
                prop_assert_eq!(shares(&policies, model), chances(rule), "{}", model);
            }
        }
        let mixed = rewrites.iter().flat_map(|r| &r.rules).filter(|rule| {
            let weighted = rule.targets.iter().filter(|t| t.weight.is_some()).count();
            weighted > 0 && weighted < rule.targets.len()
        });
        prop_assert_eq!(policies.warnings().len(), mixed.count());
        let mut reversed = rewrites;
        reversed.reverse();
        prop_assert_eq!(only(reversed), policies);
    }
}
