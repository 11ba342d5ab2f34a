//! The planner against brute force, on problems small enough to try everything.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "plan/brute.rs"]
mod brute;

use std::collections::{BTreeMap, BTreeSet};

use brute::*;
use janus_cluster::plan::{
    Error, Layers, Load, ModelSizes, NodeSpec, Options, Pin, PipelinePlan, Plan, Problem, Remedy, Role, RowCost, Unused,
    estimate, next_node, plan, replan,
};
use proptest::prelude::*;
use proptest::test_runner::Config;

fn config(cases: u32) -> Config {
    Config { cases, failure_persistence: None, ..Config::default() }
}

fn node(id: &str, memory_bytes: u64, ms_per_layer: f64) -> NodeSpec {
    NodeSpec {
        id: id.to_owned(),
        zone: "a".to_owned(),
        memory_bytes,
        ms_per_layer,
        ms_embed: 0.0,
        ms_head: 0.0,
        numerics: "cpu".to_owned(),
        roles: BTreeSet::from([Role::Stage]),
        round_trips: BTreeMap::new(),
        holds: None,
        pool: None,
    }
}

fn model(layers: usize) -> ModelSizes {
    ModelSizes {
        layer_bytes: vec![100; layers],
        embedding_bytes: 50,
        head_bytes: 70,
        kv_bytes_per_position: 1,
        hidden: 8,
        image_tokens: 576,
    }
}

fn problem(layers: usize, nodes: Vec<NodeSpec>) -> Problem {
    Problem { model: model(layers), nodes, options: Options::default() }
}

fn layout(plan: &PipelinePlan) -> Vec<(&str, usize, usize)> {
    plan.stages.iter().map(|s| (s.node.as_str(), s.layers.first, s.layers.end)).collect()
}

/// What has to be true of any plan.
fn check_plan(problem: &Problem, plan: &Plan) {
    let mut seen = BTreeSet::new();
    for pipeline in &plan.pipelines {
        check_pipeline(problem, pipeline);
        for stage in &pipeline.stages {
            assert!(seen.insert(stage.node.clone()), "{} works twice", stage.node);
            assert!(!problem.options.forbidden_nodes.contains(&stage.node));
        }
    }
    let others = plan.spares.iter().map(|s| &s.node).chain(plan.unused.iter().map(|(n, _)| n));
    for node in others {
        assert!(seen.insert(node.clone()), "{node} is there twice");
    }
    assert_eq!(seen.len(), problem.nodes.len(), "a node is missing");
}

/// Every layer once, in order, within the memory, with true numbers.
fn check_pipeline(problem: &Problem, pipeline: &PipelinePlan) {
    let stages: Vec<(usize, Layers)> =
        pipeline.stages.iter().map(|s| (problem.nodes.iter().position(|n| n.id == s.node).unwrap(), s.layers)).collect();
    let mut next = 0;
    for (stage, &(n, layers)) in pipeline.stages.iter().zip(&stages) {
        assert_eq!(layers.first, next);
        assert!(!layers.is_empty());
        next = layers.end;
        assert_eq!(stage.memory_bytes, problem.model.stage_bytes(layers, problem.options.kv_positions));
        assert!(stage.memory_bytes <= problem.nodes[n].memory_bytes, "{} is too small", stage.node);
        assert_eq!(stage.numerics, problem.nodes[n].numerics);
        assert_eq!(stage.numerics, pipeline.numerics);
    }
    assert_eq!(next, problem.model.layer_bytes.len());
    let weighed = weigh(problem, &stages, &vec![None; problem.nodes.len()], &memory(problem)).expect("a legal pipeline");
    assert_eq!(ns(pipeline.pace_ms), weighed.pace);
    assert_eq!(ns(pipeline.step_ms), weighed.latency);
}

prop_compose! {
    fn some_node()(
        memory in 80_u64..700,
        ms in 1_u32..6,
        embed in 0_u32..3,
        head in 0_u32..3,
        zone in 0_usize..2,
        pool in prop_oneof![3 => Just(None), 1 => Just(Some("x")), 1 => Just(Some("y"))],
        numerics in prop_oneof![5 => Just("cpu"), 1 => Just("gpu")],
        stage in prop::bool::weighted(0.95),
        trips in prop::collection::vec(prop::option::of(0_u32..40), 6),
        held in prop::option::of((0_usize..5, 1_usize..4)),
    ) -> NodeSpec {
        NodeSpec {
            zone: ["a", "b"][zone].to_owned(),
            ms_embed: f64::from(embed) / 2.0,
            ms_head: f64::from(head) / 2.0,
            numerics: numerics.to_owned(),
            roles: if stage { BTreeSet::from([Role::Stage, Role::Encoder]) } else { BTreeSet::from([Role::Decoder]) },
            round_trips: trips.iter().enumerate()
                .filter_map(|(i, t)| t.map(|t| (format!("n{i}"), f64::from(t) / 4.0))).collect(),
            holds: held.map(|(first, len)| Layers { first, end: first + len }),
            pool: pool.map(str::to_owned),
            ..node("", memory, f64::from(ms) / 2.0)
        }
    }
}

prop_compose! {
    fn some_problem(most_nodes: usize, most_layers: usize)(
        layers in 1..=most_layers,
        bytes in prop::collection::vec(40_u64..160, most_layers),
        mut nodes in prop::collection::vec(some_node(), 1..=most_nodes),
        kv_positions in 0_usize..60,
        stages in prop_oneof![3 => Just(None), 1 => (1_usize..4).prop_map(Some)],
        max_stages in prop_oneof![3 => Just(None), 1 => (3_usize..5).prop_map(Some)],
        numerics in prop_oneof![4 => Just(None), 1 => Just(Some("cpu".to_owned()))],
        forbidden_node in prop::option::weighted(0.2, 0_usize..5),
        forbidden_link in prop::option::weighted(0.4, (0_usize..5, 0_usize..5)),
        pin in prop::option::weighted(0.2, (0_usize..5, 0_usize..5, 1_usize..3)),
        coordinator in prop::option::weighted(0.4, Just("n5".to_owned())),
        prefer_held in any::<bool>(),
    ) -> Problem {
        for (i, node) in nodes.iter_mut().enumerate() {
            node.id = format!("n{i}");
            node.holds = node.holds.filter(|h| h.end <= layers);
        }
        let pinned = pin.filter(|&(n, first, len)| n < nodes.len() && first + len <= layers)
            .map(|(n, first, len)| Pin { node: format!("n{n}"), layers: Layers { first, end: first + len } });
        // Brute force takes pins for fences within one numerics id.
        if let Some(pin) = &pinned {
            nodes.iter_mut().for_each(|n| n.numerics = "cpu".to_owned());
            let mine = nodes.iter_mut().find(|n| n.id == pin.node).unwrap();
            mine.roles = BTreeSet::from([Role::Stage]);
        }
        let forbidden_nodes: BTreeSet<_> = forbidden_node.map(|n| format!("n{n}")).into_iter()
            .filter(|n| pinned.as_ref().is_none_or(|p| p.node != *n)).collect();
        Problem {
            model: ModelSizes { layer_bytes: bytes[..layers].to_vec(), ..model(layers) },
            nodes,
            options: Options {
                stages, max_stages, numerics, kv_positions, coordinator, prefer_held,
                pinned: pinned.into_iter().collect(),
                forbidden_nodes,
                forbidden_links: forbidden_link.map(|(a, b)| (format!("n{a}"), format!("n{b}"))).into_iter().collect(),
                ..Options::default()
            },
        }
    }
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn one_pipeline_is_the_best_of_all_subsets_orders_and_partitions(problem in some_problem(4, 5)) {
        let all = tried(&problem, &allowed(&problem), &memory(&problem), &holds(&problem));
        let order = |t: &&Tried| {
            let (a, b) = (t.latency, t.load);
            if problem.options.prefer_held { (t.pace, b, a) } else { (t.pace, a, b) }
        };
        let best = all.iter().filter(|t| t.missing == 0).min_by_key(order);
        match (plan(&problem), best) {
            (Ok(plan), Some(best)) => {
                check_plan(&problem, &plan);
                let pipeline = &plan.pipelines[0];
                prop_assert_eq!(ns(pipeline.pace_ms), best.pace);
                let stages: Vec<_> = pipeline.stages.iter().map(|s| {
                    (problem.nodes.iter().position(|n| n.id == s.node).unwrap(), s.layers)
                }).collect();
                let found = weigh(&problem, &stages, &holds(&problem), &memory(&problem)).unwrap();
                prop_assert_eq!(order(&&found), order(&best), "{:?} against {:?}", found.stages, best.stages);
            }
            (Err(Error::DoesNotFit { missing_bytes, shortages, .. }), None) => {
                let least = all.iter().map(|t| t.missing).min();
                prop_assert_eq!(Some(missing_bytes), least);
                prop_assert_eq!(shortages.iter().map(|s| s.missing_bytes).sum::<u64>(), missing_bytes);
            }
            (Err(Error::TooFewNodes { .. } | Error::Contradiction { .. }), None) => prop_assert!(all.is_empty()),
            (found, best) => prop_assert!(false, "{found:?} but brute force found {best:?}"),
        }
    }

    #[test]
    fn the_order_of_the_nodes_changes_nothing(problem in some_problem(6, 7), pipelines in prop::option::of(1_usize..3), spares in 0_usize..2) {
        let mut there = problem;
        there.options.pipelines = pipelines;
        there.options.spares = spares;
        let mut back = there.clone();
        back.nodes.reverse();
        prop_assert_eq!(plan(&there), plan(&back));
    }
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn several_pipelines_have_the_best_sum_of_rates(mut problem in some_problem(5, 4), pipelines in prop::option::of(2_usize..4)) {
        problem.options.pipelines = pipelines;
        problem.options.pinned.clear();
        problem.nodes.iter_mut().for_each(|n| n.pool = None);
        let nodes = allowed(&problem);
        let best = best_rate(&problem, &nodes, &memory(&problem), pipelines);
        match (plan(&problem), best) {
            (Ok(plan), Some(best)) => {
                check_plan(&problem, &plan);
                prop_assert!(pipelines.is_none_or(|k| k == plan.pipelines.len()));
                prop_assert_eq!(plan.pipelines.iter().map(|p| rate(ns(p.pace_ms))).sum::<u128>(), best);
            }
            (Err(Error::DoesNotFit { missing_bytes, .. }), None) => {
                prop_assert_eq!(Some(missing_bytes), least_missing(&problem, &nodes, pipelines.unwrap_or(1)));
            }
            (Err(Error::TooFewNodes { .. } | Error::Contradiction { .. }), None) => {
                prop_assert_eq!(least_missing(&problem, &nodes, pipelines.unwrap_or(1)), None);
            }
            (found, best) => prop_assert!(false, "{found:?} but brute force found {best:?}"),
        }
    }

    #[test]
    fn each_spare_can_replace_any_stage_and_no_more_could_be_kept(mut problem in some_problem(5, 4), asked in 1_usize..3) {
        problem.options.spares = asked;
        problem.options.pinned.clear();
        problem.nodes.iter_mut().for_each(|n| n.pool = None);
        let nodes = allowed(&problem);
        let mut most: Option<(usize, u128)> = None;
        for count in (0..=asked).rev() {
            let mut best: Option<u128> = None;
            for free in choices(&nodes, count) {
                let room = free.iter().map(|&n| problem.nodes[n].memory_bytes).min().unwrap_or(u64::MAX);
                let limit: Vec<u64> = problem.nodes.iter().map(|n| n.memory_bytes.min(room)).collect();
                let same = |n: usize| free.first().is_none_or(|&f| problem.nodes[f].numerics == problem.nodes[n].numerics);
                if free.iter().all(|&n| same(n)) {
                    let rest: Vec<usize> = nodes.iter().copied().filter(|n| !free.contains(n) && same(*n)).collect();
                    best = best.max(best_rate(&problem, &rest, &limit, Some(1)));
                }
            }
            if let Some(rate) = best {
                most = Some((count, rate));
                break;
            }
        }
        match (plan(&problem), most) {
            (Ok(plan), Some((count, best))) => {
                check_plan(&problem, &plan);
                prop_assert_eq!(plan.spares.len(), count);
                prop_assert_eq!(rate(ns(plan.pipelines[0].pace_ms)), best);
                for spare in &plan.spares {
                    let node = problem.nodes.iter().find(|n| n.id == spare.node).unwrap();
                    prop_assert_eq!(&node.numerics, &plan.pipelines[0].numerics);
                    let stages = &plan.pipelines[0].stages;
                    prop_assert!(stages.iter().all(|s| s.memory_bytes <= node.memory_bytes));
                    // What it loads in advance leaves room for the cache of any stage among it.
                    let longest = stages.iter().filter(|s| spare.preload.covers(s.layers)).map(|s| s.layers.len()).max();
                    let kv = problem.model.kv_bytes(longest.unwrap(), problem.options.kv_positions);
                    prop_assert!(problem.model.weight_bytes(spare.preload) + kv <= node.memory_bytes);
                }
            }
            (Err(_), None) => {}
            (found, most) => prop_assert!(false, "{found:?} but brute force found {most:?}"),
        }
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn a_lost_stage_is_replaced_by_a_spare_or_by_the_cheapest_good_repartition(
        mut problem in some_problem(5, 5), lost in prop::collection::btree_set(0_usize..5, 1..3), grown in 0_usize..20,
    ) {
        problem.options.pinned.clear();
        let Ok(before) = plan(&problem) else { return Ok(()) };
        let previous = &before.pipelines[0];
        problem.options.kv_positions += grown;
        let lost: Vec<String> = lost.iter().map(|n| format!("n{n}")).collect();
        let found = replan(&problem, previous, &lost);

        problem.options.stages = None;
        problem.options.numerics = Some(previous.numerics.clone());
        let mut held = holds(&problem);
        for (n, node) in problem.nodes.iter().enumerate() {
            let stage = previous.stages.iter().find(|s| s.node == node.id);
            held[n] = held[n].or(stage.map(|s| s.layers));
        }
        let nodes: Vec<usize> = allowed(&problem).into_iter().filter(|&n| !lost.contains(&problem.nodes[n].id)).collect();
        let all = tried(&problem, &nodes, &memory(&problem), &held);
        let fit = |t: &&Tried| t.missing == 0;
        let id = |n: usize| problem.nodes[n].id.as_str();
        let ranges: Vec<Layers> = previous.stages.iter().map(|s| s.layers).collect();
        // The old layout with another node in each gap, which holds the layers already.
        let filled = |t: &Tried| t.stages.len() == ranges.len() && t.stages.iter().zip(&previous.stages).all(|(&(n, l), s)| {
            let stays = id(n) == s.node;
            let gone = !nodes.iter().any(|&m| id(m) == s.node);
            let free = previous.stages.iter().all(|s| s.node != id(n));
            l == s.layers && (stays || gone && free && held[n].is_some_and(|h| h.covers(l)))
        });
        let easy: Vec<&Tried> = all.iter().filter(fit).filter(|t| filled(t)).collect();
        match found {
            Ok(new) => {
                check_pipeline(&problem, &new.pipeline);
                prop_assert!(new.pipeline.stages.iter().all(|s| !lost.contains(&s.node)));
                let stages: Vec<_> = new.pipeline.stages.iter()
                    .map(|s| (problem.nodes.iter().position(|n| n.id == s.node).unwrap(), s.layers)).collect();
                let mine = weigh(&problem, &stages, &held, &memory(&problem)).unwrap();
                prop_assert_eq!(new.load_bytes, mine.load);
                let best = all.iter().filter(fit).map(|t| t.pace).min().unwrap();
                match new.remedy {
                    Remedy::Unchanged => prop_assert_eq!(layout(&new.pipeline), layout(previous)),
                    Remedy::Spares => {
                        prop_assert!(filled(&mine));
                        let least = easy.iter().map(|t| (t.pace, t.latency)).min();
                        prop_assert_eq!(Some((mine.pace, mine.latency)), least);
                    }
                    Remedy::Repartitioned => {
                        prop_assert!(easy.is_empty(), "{:?} could have stood in", easy[0].stages);
                        let good = |t: &&Tried| t.missing == 0 && t.pace <= best + best / 20;
                        let least = all.iter().filter(good).map(|t| (t.load, t.latency)).min().unwrap();
                        prop_assert!(mine.pace <= best + best / 20);
                        prop_assert_eq!((mine.load, mine.latency), least);
                    }
                }
            }
            Err(Error::DoesNotFit { missing_bytes, .. }) => {
                prop_assert_eq!(all.iter().map(|t| t.missing).min(), Some(missing_bytes));
                prop_assert!(missing_bytes > 0);
            }
            Err(Error::TooFewNodes { .. } | Error::Contradiction { .. }) => prop_assert!(all.is_empty()),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

#[test]
fn equal_nodes_share_equally() {
    let there = problem(12, ["a", "b", "c"].map(|id| node(id, 10_000, 1.0)).into());
    let found = plan(&there).unwrap();
    assert_eq!(layout(&found.pipelines[0]), [("a", 0, 4), ("b", 4, 8), ("c", 8, 12)]);
    assert_eq!(found.pipelines[0].pace_ms, 4.0);
    assert_eq!(found.pipelines[0].step_ms, 12.5);
}

#[test]
fn processes_of_one_machine_are_even_when_stages_are_asked_for_and_one_when_not() {
    let mut nodes = ["a", "b", "c"].map(|id| node(id, 10_000, 1.0));
    nodes.iter_mut().for_each(|n| n.pool = Some("here".to_owned()));
    let mut there = problem(12, nodes.into());
    assert_eq!(layout(&plan(&there).unwrap().pipelines[0]), [("a", 0, 12)]);
    there.options.stages = Some(3);
    let found = plan(&there).unwrap();
    assert_eq!(layout(&found.pipelines[0]), [("a", 0, 4), ("b", 4, 8), ("c", 8, 12)]);
    assert_eq!(found.pipelines[0].pace_ms, 12.0, "they share the cores");
}

#[test]
fn pipelines_keep_to_their_zones() {
    let mut nodes = ["a1", "b1", "a2", "b2"].map(|id| node(id, 10_000, 1.0));
    nodes.iter_mut().for_each(|n| n.zone = n.id[..1].to_owned());
    let mut there = problem(8, nodes.into());
    there.options.pipelines = Some(2);
    there.options.stages = Some(2);
    let found = plan(&there).unwrap();
    let used: Vec<_> = found.pipelines.iter().map(layout).collect();
    assert_eq!(used, [[("a1", 0, 4), ("a2", 4, 8)], [("b1", 0, 4), ("b2", 4, 8)]]);
}

#[test]
fn everybody_without_work_hears_why() {
    let mut nodes = ["big", "tiny", "gpu", "encoder", "banned", "slow"].map(|id| node(id, 10_000, 1.0));
    nodes[1].memory_bytes = 90;
    nodes[2].numerics = "gpu".to_owned();
    nodes[2].ms_per_layer = 9.0;
    nodes[3].roles = BTreeSet::from([Role::Encoder]);
    nodes[5].ms_per_layer = 50.0;
    let mut there = problem(4, nodes.into());
    there.options.forbidden_nodes.insert("banned".to_owned());
    let reasons: BTreeMap<_, _> = plan(&there).unwrap().unused.into_iter().collect();
    let expected = [
        ("banned", Unused::Forbidden),
        ("encoder", Unused::NotAStage),
        ("gpu", Unused::OtherNumerics),
        ("slow", Unused::NotNeeded),
        ("tiny", Unused::TooSmall),
    ];
    assert_eq!(reasons, expected.map(|(n, r)| (n.to_owned(), r)).into());
}

#[test]
fn pins_alone_may_mix_numerics() {
    let mut nodes = ["a", "b"].map(|id| node(id, 10_000, 1.0));
    nodes[1].numerics = "gpu".to_owned();
    let mut there = problem(4, nodes.into());
    there.options.stages = Some(2);
    assert!(matches!(plan(&there), Err(Error::TooFewNodes { .. })));
    there.options.pinned = vec![Pin { node: "b".to_owned(), layers: (1, 4).into() }];
    let found = plan(&there).unwrap();
    assert_eq!(layout(&found.pipelines[0]), [("a", 0, 1), ("b", 1, 4)]);
    assert_eq!(found.pipelines[0].numerics, "cpu[0,1)+gpu[1,4)");
    // And a layer keeps its id when its node is lost, pinned or not.
    there.nodes.push(node("c", 10_000, 1.0));
    let error = replan(&there, &found.pipelines[0], &["b".to_owned()]).unwrap_err();
    assert!(matches!(error, Error::Contradiction { .. } | Error::TooFewNodes { .. }), "{error}");
}

#[test]
fn what_is_missing_is_said_in_words() {
    let gib = 1_u64 << 30;
    let mut there = problem(4, ["a", "b", "c"].map(|id| node(id, 4 * gib, 1.0)).into());
    there.model = ModelSizes {
        layer_bytes: vec![3 * gib; 4],
        embedding_bytes: 0,
        head_bytes: 0,
        kv_bytes_per_position: gib / 2,
        ..model(4)
    };
    there.options.kv_positions = 1;
    let text = plan(&there).unwrap_err().to_string();
    let expected = "no plan that fits: 3 nodes offer 12.0 GiB, 1 pipeline with KV for 1 positions needs 14.0 GiB; \
                    3.0 GiB missing (";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.ends_with(" lacks 3.0 GiB)"), "{text}");
}

#[test]
fn nonsense_is_refused_by_name() {
    let good = problem(4, vec![node("a", 1000, 1.0), node("b", 1000, 1.0)]);
    let refused = |change: &dyn Fn(&mut Problem), expected: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        let error = plan(&bad).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused(&|p| p.model.layer_bytes.clear(), "0 layers");
    refused(&|p| p.nodes[1].id = "a".to_owned(), "two nodes are called a");
    refused(&|p| p.nodes[1].ms_per_layer = f64::NAN, "ms_per_layer of b");
    refused(&|p| p.nodes[1].ms_head = -1.0, "ms_head of b");
    refused(&|p| p.nodes[0].holds = Some(Layers { first: 3, end: 9 }), "what a holds");
    refused(&|p| p.options.stages = Some(0), "stages is 0");
    refused(&|p| p.options.pinned.push(Pin { node: "z".to_owned(), layers: (0, 1).into() }), "pinned to z");
    let strange = PipelinePlan { stages: Vec::new(), ..plan(&good).unwrap().pipelines[0].clone() };
    assert!(matches!(replan(&good, &strange, &[]), Err(Error::Invalid(_))));
}

#[test]
fn numbers_without_bounds_do_not_overflow() {
    let mut there = problem(4, vec![node("a", u64::MAX, 8.0e7), node("b", u64::MAX, 8.0e7)]);
    there.model.layer_bytes = vec![u64::MAX; 4];
    there.options.kv_positions = usize::MAX;
    there.model.kv_bytes_per_position = u64::MAX;
    assert!(plan(&there).is_ok(), "saturated needs and saturated offers are equal");
    there.nodes.iter_mut().for_each(|n| n.memory_bytes = 1);
    assert!(matches!(plan(&there), Err(Error::DoesNotFit { .. })));
}

#[test]
fn many_nodes_are_planned_well() {
    // Four zones of eight equal nodes: the best pace is known.
    let mut nodes: Vec<NodeSpec> = (0..32).map(|i| node(&format!("n{i:02}"), 1000, 1.0)).collect();
    nodes.iter_mut().enumerate().for_each(|(i, n)| n.zone = ["a", "b", "c", "d"][i % 4].to_owned());
    let mut there = problem(24, nodes);
    let found = plan(&there).unwrap();
    check_plan(&there, &found);
    assert_eq!(found.pipelines[0].pace_ms, 1.0);
    there.options.pipelines = Some(4);
    let found = plan(&there).unwrap();
    check_plan(&there, &found);
    assert_eq!(found.pipelines.iter().map(|p| p.pace_ms).collect::<Vec<_>>(), [3.0; 4]);
    there.options.spares = 2;
    let found = plan(&there).unwrap();
    check_plan(&there, &found);
    assert_eq!(found.spares.len(), 2);
}

fn load(pictures: Option<usize>) -> Load {
    Load { pictures, prompt_tokens: 0, rows: None, vq_decode_ms: 0.0, decoders: 1 }
}

#[test]
fn pictures_per_hour_follow_from_the_pace() {
    let there = problem(12, ["a", "b", "c"].map(|id| node(id, 10_000, 1.0)).into());
    let found = plan(&there).unwrap();
    // One picture: 576 steps of 12 ms and two links of 0.25 ms.
    let one = estimate(&there, &found, &load(Some(1)));
    assert!((one.pictures_per_hour - 3.6e6 / (576.0 * 12.5)).abs() < 1e-6, "{one:?}");
    assert!((one.pipelines[0].picture_s - 576.0 * 0.0125).abs() < 1e-9, "{one:?}");
    // Four microbatches over three pools: each pool works all the time, 4 ms a picture and token.
    let full = estimate(&there, &found, &load(None));
    assert_eq!((full.pipelines[0].microbatches, full.pipelines[0].pools), (4, 3));
    assert!((full.pictures_per_hour - 3.6e6 / (576.0 * 4.0)).abs() < 1e-6, "{full:?}");
    // Eight pictures in four microbatches cost as much each if rows do not share, and half if reading weights is all.
    let eight = estimate(&there, &found, &load(Some(8)));
    assert!((eight.pictures_per_hour - full.pictures_per_hour).abs() < 1e-6, "{eight:?}");
    let shared = Load { rows: Some(RowCost { floor: 1.0, per_row: 0.1 }), ..load(Some(8)) };
    assert!((estimate(&there, &found, &shared).pictures_per_hour - 2.0 * full.pictures_per_hour).abs() < 1e-6);
    // A slow decoder is the limit.
    let slow = Load { vq_decode_ms: 3600.0, ..load(None) };
    assert!((estimate(&there, &found, &slow).pictures_per_hour - 1000.0).abs() < 1e-6);
}

#[test]
fn stages_of_one_machine_bring_nothing_and_the_next_node_its_share() {
    let mut nodes = ["a", "b"].map(|id| node(id, 10_000, 1.0));
    nodes.iter_mut().for_each(|n| n.pool = Some("here".to_owned()));
    let mut there = problem(12, nodes.into());
    there.options.stages = Some(2);
    let found = plan(&there).unwrap();
    let now = estimate(&there, &found, &load(None));
    assert_eq!(now.pipelines[0].pools, 1);
    assert!((now.pictures_per_hour - 3.6e6 / (576.0 * 12.0)).abs() < 1.0, "{now:?}");
    let next = next_node(&there, &found, &load(None)).unwrap();
    assert_eq!(next.plan.pipelines[0].stages.len(), 3);
    // Half of the layers move to the new machine.
    assert!((next.estimate.pictures_per_hour / now.pictures_per_hour - 2.0).abs() < 0.01, "{next:?}");
}

#[test]
fn pictures_need_room_for_their_cache() {
    let mut there = problem(4, vec![node("a", 10_000, 1.0)]);
    there.options.kv_positions = 2 * 576 + 1;
    let found = plan(&there).unwrap();
    assert_eq!(estimate(&there, &found, &load(Some(8))).pipelines[0].pictures, 1);
    there.options.kv_positions = 500;
    let found = plan(&there).unwrap();
    let none = estimate(&there, &found, &load(Some(8)));
    assert_eq!((none.pipelines[0].pictures, none.pictures_per_hour), (0, 0.0));
}

#[test]
fn five_percent_of_pace_are_given_for_fewer_bytes_to_load() {
    let mut there = problem(42, ["a", "b", "c"].map(|id| node(id, 10_000, 1.0)).into());
    let pin = |node: &str, first, end| Pin { node: node.to_owned(), layers: Layers { first, end } };
    there.options.pinned = vec![pin("a", 0, 20), pin("b", 20, 41), pin("c", 41, 42)];
    let before = plan(&there).unwrap();
    there.options.pinned.clear();
    let after = replan(&there, &before.pipelines[0], &["c".to_owned()]).unwrap();
    // 21 layers each would be the best, but then both would load one.
    assert_eq!(layout(&after.pipeline), [("a", 0, 20), ("b", 20, 42)]);
    assert_eq!((after.remedy, after.load_bytes), (Remedy::Repartitioned, 100 + 70));
}
