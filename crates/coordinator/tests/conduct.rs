//! Who gets which layers: the conductor against a rim that answers for its nodes, second by second.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use janus_cluster::plan::ModelSizes;
use janus_cluster::{Member, Role};
use janus_coordinator::conduct::{Action, Conductor, ENOUGH, Event, GIVEN_UP, SETTLE, SUSPECT, Wishes};
use janus_coordinator::pipeline::Placement;

const LAYERS: usize = 6;
const FENCE: u64 = 7;

/// Nodes that answer and load at once, unless they are dead or damaged.
struct Cluster {
    conductor: Conductor,
    now: Duration,
    members: BTreeMap<String, Member>,
    dead: BTreeSet<String>,
    damaged: BTreeSet<String>,
    /// Every placement is over as soon as it is there.
    hopeless: bool,
    placed: BTreeMap<usize, Placement>,
    placements: usize,
    parked: Vec<usize>,
    loads: Vec<(String, Range<usize>)>,
    restarts: Vec<String>,
}

fn wishes(pipelines: usize, stages: Option<usize>, spares: usize) -> Wishes {
    Wishes {
        pipelines,
        stages,
        spares,
        kv_positions: 0,
        numerics: "n".to_owned(),
        others: BTreeMap::new(),
        model: "m".to_owned(),
    }
}

fn sizes() -> ModelSizes {
    ModelSizes {
        layer_bytes: vec![100; LAYERS],
        embedding_bytes: 0,
        head_bytes: 0,
        kv_bytes_per_position: 0,
        hidden: 2,
        image_tokens: 8,
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

impl Cluster {
    /// Nodes of so many layers' memory, named `a`, `b`, ...
    fn new(wishes: Wishes, memory: &[u64]) -> Self {
        let mut cluster = Cluster {
            conductor: Conductor::new(wishes, sizes(), FENCE),
            now: Duration::ZERO,
            members: BTreeMap::new(),
            dead: BTreeSet::new(),
            damaged: BTreeSet::new(),
            hopeless: false,
            placed: BTreeMap::new(),
            placements: 0,
            parked: Vec::new(),
            loads: Vec::new(),
            restarts: Vec::new(),
        };
        for (i, layers) in memory.iter().enumerate() {
            cluster.add(&char::from(b'a' + i as u8).to_string(), *layers);
        }
        cluster
    }

    fn add(&mut self, id: &str, layers: u64) {
        let member = Member {
            id: id.to_owned(),
            incarnation: "1".to_owned(),
            roles: vec![Role::Stage],
            address: format!("{id}:1"),
            memory_bytes: 100 * layers,
            ms_per_layer: 1.0,
            numerics: "n".to_owned(),
            model: "m".to_owned(),
            ..Member::default()
        };
        self.members.insert(id.to_owned(), member);
    }

    /// A node that computes something else, and does everything.
    fn add_other(&mut self, id: &str, layers: u64) {
        self.add(id, layers);
        let member = self.members.get_mut(id).unwrap();
        (member.numerics, member.roles) = ("o".to_owned(), vec![Role::Stage, Role::Encoder, Role::Decoder]);
    }

    fn announce(&mut self) {
        self.happen(Event::Members(self.members.clone()));
    }

    fn happen(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut steps = 0;
        while let Some(event) = events.pop_front() {
            steps += 1;
            assert!(steps < 1000, "it spins");
            for action in self.conductor.step(self.now, event) {
                assert_eq!(self.conductor.violated(), None);
                match action {
                    Action::Ask(node) => {
                        let answers = !self.dead.contains(&node);
                        events.push_back(Event::Asked { node, answers });
                    }
                    Action::Load(node, layers, epoch) => {
                        assert_eq!(epoch >> 32, FENCE);
                        self.loads.push((node.clone(), layers.clone()));
                        let fails = self.dead.contains(&node) || self.damaged.contains(&node);
                        if let Some(member) = self.members.get_mut(&node).filter(|_| !fails) {
                            member.layers = (!layers.is_empty()).then_some([layers.start, layers.end]);
                        }
                        events.push_back(Event::Loaded {
                            node,
                            layers,
                            failure: fails.then(|| "a tensor is damaged".to_owned()),
                        });
                    }
                    Action::Place(pipeline, placement) => {
                        let epoch = placement.epoch;
                        let newer = self.placed.values().all(|before| before.epoch < epoch);
                        assert!(newer && epoch >> 32 == FENCE, "epoch {epoch:x}");
                        self.placements += 1;
                        let lost = self.hopeless || placement.stages.iter().any(|s| self.dead.contains(&s.node));
                        self.placed.insert(pipeline, placement);
                        events.push_back(match lost {
                            true => Event::Lost { pipeline, epoch, reason: "a stream ended".to_owned(), stage: None },
                            false => Event::Ready { pipeline, epoch },
                        });
                    }
                    Action::Parked(pipeline) => self.parked.push(pipeline),
                    Action::Restart(numerics) => self.restarts.push(numerics),
                }
            }
        }
    }

    /// Time goes on.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100);
            self.happen(Event::Tick);
        }
    }

    /// A pipeline's driver notices that it is over, perhaps while it connects a stage.
    fn lost(&mut self, pipeline: usize, stage: Option<usize>) {
        let epoch = self.placed[&pipeline].epoch;
        self.happen(Event::Lost { pipeline, epoch, reason: "a stream ended".to_owned(), stage });
    }

    /// The process is gone at once; its record a while later.
    fn kill(&mut self, node: &str) {
        self.dead.insert(node.to_owned());
        let at = self.placed.iter().find(|(_, p)| p.stages.iter().any(|s| s.node == node)).map(|(i, _)| *i);
        if let Some(pipeline) = at {
            self.lost(pipeline, None);
        }
        self.members.remove(node);
        self.announce();
    }

    fn stages(&self, pipeline: usize) -> Vec<(&str, Range<usize>)> {
        self.placed[&pipeline].stages.iter().map(|s| (s.node.as_str(), s.layers.clone())).collect()
    }

    fn nodes(&self, pipeline: usize) -> Vec<&str> {
        self.stages(pipeline).into_iter().map(|(node, _)| node).collect()
    }

    fn ready(&self, pipeline: usize) -> bool {
        self.conductor.standings()[pipeline].ready
    }
}

#[test]
fn the_first_start_has_as_many_stages_as_were_asked_for() {
    for stages in 1..=4 {
        let mut cluster = Cluster::new(wishes(1, Some(stages), 0), &[6; 4]);
        cluster.announce();
        assert!(cluster.ready(0));
        assert_eq!((cluster.stages(0).len(), cluster.placements), (stages, 1));
    }
}

#[test]
fn what_was_asked_for_is_waited_for_and_then_less_will_do() {
    let mut cluster = Cluster::new(wishes(2, Some(3), 0), &[6; 2]);
    cluster.announce();
    cluster.pass(ENOUGH - seconds(0.5));
    assert_eq!(cluster.placements, 0);
    cluster.pass(seconds(1.0));
    assert!(cluster.ready(0) || cluster.ready(1), "{:?}", cluster.conductor.standings());
}

#[test]
fn a_spare_stands_in_and_all_others_stay_as_they_are() {
    let mut cluster = Cluster::new(wishes(1, Some(3), 1), &[6; 4]);
    cluster.announce();
    let before: BTreeSet<String> = cluster.nodes(0).into_iter().map(str::to_owned).collect();
    let spare = cluster.members.keys().find(|id| !before.contains(*id)).unwrap().clone();
    assert!(cluster.loads.contains(&(spare.clone(), 0..LAYERS)), "it loads in advance: {:?}", cluster.loads);
    let old: Vec<_> = cluster.stages(0).into_iter().map(|(n, l)| (n.to_owned(), l)).collect();
    let victim = old[1].0.clone();
    cluster.kill(&victim);
    assert!(cluster.ready(0));
    let new: Vec<_> = cluster.stages(0).into_iter().map(|(n, l)| (n.to_owned(), l)).collect();
    assert_eq!(new, [old[0].clone(), (spare, old[1].1.clone()), old[2].clone()]);
}

#[test]
fn without_a_spare_the_survivors_divide_the_layers() {
    let mut cluster = Cluster::new(wishes(1, Some(3), 0), &[3; 3]);
    cluster.announce();
    let victim = cluster.nodes(0)[0].to_owned();
    cluster.kill(&victim);
    assert!(cluster.ready(0));
    assert_eq!(cluster.stages(0).len(), 2);
    assert!(!cluster.nodes(0).contains(&victim.as_str()));
}

#[test]
fn neighbours_that_cannot_connect_are_kept_apart() {
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3; 3]);
    cluster.announce();
    let pair: Vec<String> = cluster.nodes(0).into_iter().map(str::to_owned).collect();
    cluster.lost(0, Some(0));
    cluster.pass(seconds(1.0));
    assert!(cluster.ready(0));
    let stages = cluster.nodes(0);
    let together = |nodes: &[&str]| nodes.contains(&pair[0].as_str()) && nodes.contains(&pair[1].as_str());
    assert!(!stages.windows(2).any(together), "{pair:?} are neighbours in {stages:?}");
    // With nobody else to stand between them they wait until the quarrel is forgotten.
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3; 2]);
    cluster.announce();
    cluster.lost(0, Some(0));
    assert!(!cluster.ready(0) && cluster.parked == [0]);
    cluster.pass(seconds(31.0));
    assert!(cluster.ready(0));
}

#[test]
fn a_draining_node_serves_until_its_layers_have_another_place() {
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3, 3]);
    cluster.announce();
    let leaving = cluster.nodes(0)[1].to_owned();
    cluster.members.get_mut(&leaving).unwrap().draining = true;
    cluster.announce();
    cluster.pass(seconds(20.0));
    assert_eq!((cluster.ready(0), cluster.placements), (true, 1), "there is no other place");
    cluster.add("z", 3);
    cluster.announce();
    assert_eq!((cluster.ready(0), cluster.placements), (true, 2));
    assert!(!cluster.nodes(0).contains(&leaving.as_str()));
    cluster.announce();
    assert!(cluster.loads.contains(&(leaving, 0..0)), "it waits for the word to let go: {:?}", cluster.loads);
}

#[test]
fn newcomers_are_taken_in_when_the_members_are_calm() {
    let mut cluster = Cluster::new(wishes(1, Some(3), 0), &[6; 2]);
    cluster.announce();
    cluster.pass(ENOUGH + seconds(1.0));
    assert_eq!(cluster.stages(0).len(), 2);
    cluster.add("z", 6);
    cluster.announce();
    cluster.pass(SETTLE - seconds(0.3));
    assert_eq!(cluster.stages(0).len(), 2);
    cluster.pass(seconds(1.0));
    assert_eq!((cluster.ready(0), cluster.stages(0).len(), cluster.placements), (true, 3, 2));
    // And then nothing moves any more.
    cluster.pass(seconds(30.0));
    assert_eq!(cluster.placements, 2);
}

#[test]
fn whoever_does_not_answer_gets_no_layers_until_it_does() {
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3; 3]);
    cluster.announce();
    let silent = cluster.nodes(0)[0].to_owned();
    // Its record stays: only the process does not answer.
    cluster.dead.insert(silent.clone());
    cluster.lost(0, None);
    assert!(cluster.ready(0) && !cluster.nodes(0).contains(&silent.as_str()));
    assert_eq!(cluster.conductor.state_of(&cluster.members[&silent].clone()), "suspect");
    cluster.dead.remove(&silent);
    cluster.pass(SUSPECT + seconds(0.2));
    assert_ne!(cluster.conductor.state_of(&cluster.members[&silent].clone()), "suspect");
    let other = cluster.nodes(0)[0].to_owned();
    cluster.kill(&other);
    assert!(cluster.ready(0) && cluster.nodes(0).contains(&silent.as_str()));
}

#[test]
fn a_node_that_lost_its_record_but_answers_keeps_its_place() {
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3; 3]);
    cluster.announce();
    let away = cluster.nodes(0)[0].to_owned();
    cluster.members.remove(&away);
    cluster.announce();
    cluster.pass(seconds(10.0));
    assert_eq!((cluster.ready(0), cluster.placements), (true, 1));
    // Gone from the store and silent, it is lost before its driver notices.
    cluster.add(&away, 3);
    cluster.announce();
    cluster.dead.insert(away.clone());
    cluster.members.remove(&away);
    cluster.announce();
    assert!(cluster.ready(0) && !cluster.nodes(0).contains(&away.as_str()));
}

#[test]
fn a_successor_goes_on_with_what_its_predecessor_had_placed() {
    let mut old = Cluster::new(wishes(2, Some(2), 0), &[3; 4]);
    old.announce();
    let mut new = Cluster::new(wishes(2, Some(2), 0), &[3; 4]);
    new.conductor.inherit(old.conductor.plans());
    new.announce();
    for pipeline in 0..2 {
        assert!(new.ready(pipeline));
        assert_eq!(new.stages(pipeline), old.stages(pipeline));
    }
    // Without one of its nodes it repairs what it inherited.
    let mut new = Cluster::new(wishes(1, Some(3), 0), &[3; 4]);
    let mut old = Cluster::new(wishes(1, Some(3), 0), &[3; 4]);
    old.announce();
    let gone = old.nodes(0)[2].to_owned();
    new.conductor.inherit(old.conductor.plans());
    new.members.remove(&gone);
    new.announce();
    assert!(new.ready(0) && !new.nodes(0).contains(&gone.as_str()));
}

#[test]
fn pipelines_share_no_node_and_no_trouble() {
    let mut cluster = Cluster::new(wishes(2, Some(2), 0), &[3; 5]);
    cluster.announce();
    let both: BTreeSet<&str> = cluster.nodes(0).into_iter().chain(cluster.nodes(1)).collect();
    assert_eq!(both.len(), 4);
    let (other, epoch) = (cluster.nodes(1).iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), cluster.placed[&1].epoch);
    let victim = cluster.nodes(0)[0].to_owned();
    cluster.kill(&victim);
    cluster.pass(seconds(5.0));
    assert!(cluster.ready(0) && cluster.ready(1));
    assert_eq!((cluster.nodes(1), cluster.placed[&1].epoch), (other.iter().map(String::as_str).collect(), epoch));
}

#[test]
fn what_is_left_of_two_pipelines_runs_one() {
    let mut cluster = Cluster::new(wishes(2, Some(2), 0), &[3; 4]);
    cluster.announce();
    let victims = [cluster.nodes(0)[0].to_owned(), cluster.nodes(1)[1].to_owned()];
    victims.iter().for_each(|node| cluster.kill(node));
    cluster.pass(seconds(10.0));
    let ready = [cluster.ready(0), cluster.ready(1)];
    assert_eq!(ready.iter().filter(|ready| **ready).count(), 1, "{:?}", cluster.conductor.standings());
    // The other one's units may move: that was said when somebody could take them.
    let waits = ready.iter().position(|ready| !ready).unwrap();
    assert_eq!(cluster.parked.last(), Some(&waits));
    cluster.add("y", 3);
    cluster.add("z", 3);
    cluster.announce();
    cluster.pass(seconds(10.0));
    assert!(cluster.ready(0) && cluster.ready(1));
}

#[test]
fn what_does_not_fit_waits_with_the_reason_until_a_node_joins() {
    let mut cluster = Cluster::new(wishes(1, None, 0), &[2, 2]);
    cluster.announce();
    cluster.pass(seconds(60.0));
    assert_eq!((cluster.placements, cluster.parked.as_slice()), (0, &[0][..]));
    let reason = cluster.conductor.standings()[0].reason.clone();
    assert!(reason.contains("200 bytes missing"), "{reason}");
    cluster.add("z", 2);
    cluster.announce();
    cluster.pass(SETTLE + seconds(0.2));
    assert!(cluster.ready(0) && cluster.conductor.standings()[0].reason.is_empty());
}

#[test]
fn a_node_that_cannot_load_is_passed_over() {
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3; 3]);
    cluster.damaged.insert("a".to_owned());
    cluster.announce();
    cluster.pass(seconds(10.0));
    assert!(cluster.ready(0) && !cluster.nodes(0).contains(&"a"));
    // With nobody else it is asked again now and then, not all the time.
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3; 2]);
    cluster.damaged.insert("a".to_owned());
    cluster.announce();
    cluster.pass(seconds(60.0));
    assert!(!cluster.ready(0) && cluster.loads.len() < 60, "{} loads in a minute", cluster.loads.len());
    cluster.damaged.clear();
    cluster.pass(SUSPECT + seconds(1.0));
    assert!(cluster.ready(0));
}

#[test]
fn a_pipeline_that_fails_again_and_again_is_placed_more_and_more_rarely() {
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3; 2]);
    cluster.hopeless = true;
    cluster.announce();
    cluster.pass(seconds(10.0));
    let early = cluster.placements;
    cluster.pass(seconds(50.0));
    assert!((5..12).contains(&early) && cluster.placements < early + 12, "{early}, then {}", cluster.placements);
    cluster.hopeless = false;
    cluster.pass(seconds(6.0));
    assert!(cluster.ready(0));
}

#[test]
fn a_process_that_was_started_again_has_a_clean_slate() {
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3; 2]);
    cluster.announce();
    let victim = cluster.nodes(0)[1].to_owned();
    cluster.kill(&victim);
    cluster.pass(seconds(1.0));
    assert!(!cluster.ready(0));
    cluster.dead.clear();
    cluster.add(&victim, 3);
    cluster.members.get_mut(&victim).unwrap().incarnation = "2".to_owned();
    cluster.announce();
    assert!(cluster.ready(0), "no suspicion outlives the process: {:?}", cluster.conductor.standings());
}

#[test]
fn old_news_change_nothing() {
    let mut cluster = Cluster::new(wishes(1, Some(2), 0), &[3; 3]);
    cluster.announce();
    let old = cluster.placed[&0].epoch;
    cluster.lost(0, None);
    cluster.pass(seconds(1.0));
    let placements = cluster.placements;
    cluster.happen(Event::Lost { pipeline: 0, epoch: old, reason: "late".to_owned(), stage: Some(0) });
    cluster.happen(Event::Ready { pipeline: 0, epoch: old });
    cluster.happen(Event::Ready { pipeline: 9, epoch: old });
    cluster.happen(Event::Loaded { node: "a".to_owned(), layers: 0..1, failure: None });
    cluster.happen(Event::Asked { node: "nobody".to_owned(), answers: true });
    cluster.pass(seconds(5.0));
    assert_eq!((cluster.ready(0), cluster.placements), (true, placements));
}

/// Wishes of a cluster that may go over to nodes of the numerics `o`.
fn open_wishes(stages: usize) -> Wishes {
    Wishes { others: BTreeMap::from([("o".to_owned(), sizes())]), ..wishes(1, Some(stages), 0) }
}

#[test]
fn with_leave_a_cluster_goes_over_to_other_numerics_once_nothing_of_its_own_can_run() {
    for leave in [true, false] {
        let mut cluster = Cluster::new(if leave { open_wishes(2) } else { wishes(1, Some(2), 0) }, &[3; 2]);
        cluster.add_other("y", 6);
        cluster.announce();
        assert!(cluster.ready(0) && !cluster.nodes(0).contains(&"y"));
        let victim = cluster.nodes(0)[1].to_owned();
        cluster.kill(&victim);
        cluster.pass(GIVEN_UP - seconds(0.3));
        assert_eq!(cluster.restarts.len(), 0, "what was lost may come back");
        cluster.pass(seconds(60.0));
        assert_eq!(cluster.restarts, if leave { vec!["o"] } else { vec![] }, "it is said once");
        assert!(!cluster.ready(0));
        // Unless it could not be done: then it is said again, if it is still needed.
        cluster.happen(Event::NotRestarted);
        assert_eq!(cluster.restarts.len(), if leave { 2 } else { 0 });
        cluster.happen(Event::NotRestarted);
        cluster.restarts.clear();
        cluster.add("b", 6);
        cluster.members.get_mut("b").unwrap().incarnation = "2".to_owned();
        cluster.dead.clear();
        cluster.announce();
        cluster.happen(Event::NotRestarted);
        cluster.pass(seconds(20.0));
        assert!(cluster.ready(0) && cluster.restarts.is_empty());
    }
}

#[test]
fn nobody_goes_over_to_other_numerics_while_the_own_ones_may_come_back_or_others_are_too_few() {
    // A node that is registered, and does not answer.
    let mut cluster = Cluster::new(open_wishes(2), &[3; 2]);
    cluster.add_other("y", 6);
    cluster.announce();
    let silent = cluster.nodes(0)[1].to_owned();
    cluster.dead.insert(silent.clone());
    cluster.lost(0, None);
    cluster.pass(seconds(60.0));
    assert!(!cluster.ready(0) && cluster.restarts.is_empty());
    cluster.dead.clear();
    cluster.pass(SUSPECT + seconds(1.0));
    assert!(cluster.ready(0));
    // It comes back just in time.
    cluster.kill(&silent);
    cluster.pass(GIVEN_UP - seconds(0.5));
    cluster.dead.clear();
    cluster.add(&silent, 3);
    cluster.members.get_mut(&silent).unwrap().incarnation = "2".to_owned();
    cluster.announce();
    cluster.pass(seconds(20.0));
    assert!(cluster.ready(0) && cluster.restarts.is_empty());
    // Others have no room, or nobody who paints; and where nothing ran yet, its nodes are waited for.
    for (memory, paints, begun) in [(5, true, true), (6, false, true), (6, true, false), (6, true, true)] {
        let mut cluster = Cluster::new(open_wishes(1), if begun { &[6] } else { &[] });
        cluster.add_other("y", memory);
        if !paints {
            cluster.members.get_mut("y").unwrap().roles = vec![Role::Stage, Role::Encoder];
        }
        cluster.announce();
        if begun {
            cluster.kill("a");
        }
        cluster.pass(seconds(60.0));
        assert_eq!(!cluster.restarts.is_empty(), memory == 6 && paints && begun, "{memory} {paints} {begun}");
    }
}

#[test]
fn epochs_go_on_under_other_numerics() {
    let mut cluster = Cluster::new(open_wishes(1), &[6]);
    cluster.announce();
    let first = cluster.placed[&0].epoch;
    let placements = cluster.conductor.placements();
    cluster.conductor = Conductor::new(open_wishes(1), sizes(), FENCE).after(placements);
    cluster.announce();
    assert!(cluster.ready(0) && cluster.placed[&0].epoch > first);
}
