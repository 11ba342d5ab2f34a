//! How `janus top` looks: a screen drawn from what is known, nothing else.

use janus_wire::v1::{MemberStatus, PipelineStatus};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Sparkline, Table};

use super::watch::Watch;

/// Columns for a pipeline's speeds.
const SPEEDS: u16 = 24;

/// Draws everything; without `colours` nothing but bold and dim.
pub(super) fn draw(frame: &mut Frame, watch: &Watch, colours: bool) {
    let paint = Paint { colours };
    let pipelines = watch.answer.pipelines.len() as u16;
    let [head, _, piped, _, members, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Length(1 + (2 * pipelines).max(1)),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(watch, &paint)), head);
    draw_pipelines(frame, piped, watch, &paint);
    draw_members(frame, members, watch, &paint);
    frame.render_widget(Paragraph::new(footing(watch, members, &paint)), foot);
}

struct Paint {
    colours: bool,
}

impl Paint {
    fn of(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn bold(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn dim(&self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// Of a member's or a pipeline's state.
    fn state(&self, state: &str) -> Style {
        match state {
            "serving" | "ready" => self.of(Color::Green),
            "spare" | "idle" | "forming" => self.of(Color::Cyan),
            "draining" | "recovering" => self.of(Color::Yellow).add_modifier(Modifier::BOLD),
            _ => self.of(Color::Red).add_modifier(Modifier::BOLD),
        }
    }
}

fn heading<'a>(watch: &'a Watch, paint: &Paint) -> Vec<Line<'a>> {
    let answer = &watch.answer;
    let leader = match answer.leader.is_empty() {
        true => Span::styled("no leader", paint.state("none")),
        false => Span::raw(format!("{} at {} leads, epoch {}", answer.leader, answer.leader_address, answer.epoch)),
    };
    let mut first = vec![Span::styled("janus  ", paint.bold()), leader];
    if !answer.store_reachable {
        first.push(Span::styled("  the store is away: new requests are not durable", paint.state("away")));
    }
    let requests = answer.requests.unwrap_or_default();
    let mut second = vec![Span::raw(format!("requests  {} running  {} queued  ", requests.running, requests.queued))];
    let parked = format!("{} parked", requests.parked);
    second.push(if requests.parked > 0 { Span::styled(parked, paint.state("recovering")) } else { Span::raw(parked) });
    vec![Line::from(first), Line::from(second)]
}

fn draw_pipelines(frame: &mut Frame, area: Rect, watch: &Watch, paint: &Paint) {
    let title = Line::styled(
        format!("{:<10}{:<12}{:<9}{:<10}RECOVERY  MICROBATCHES/S", "PIPELINE", "STATE", "EPOCH", "FAILURES"),
        paint.dim(),
    );
    let mut rows = area.rows();
    rows.next().into_iter().for_each(|row| frame.render_widget(&title, row));
    if watch.answer.pipelines.is_empty() {
        rows.next().into_iter().for_each(|row| frame.render_widget(Line::raw("none: this coordinator stands by"), row));
    }
    for pipeline in &watch.answer.pipelines {
        let (Some(upper), Some(lower)) = (rows.next(), rows.next()) else { break };
        let recovery =
            if pipeline.recovery_seconds > 0.0 { format!("{:.2} s", pipeline.recovery_seconds) } else { "-".to_owned() };
        let now = watch.rates(pipeline.id).last().map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        // The upper half of an epoch is the leader's, which is above.
        let epoch = pipeline.epoch & u64::from(u32::MAX);
        let line = Line::from(vec![
            Span::raw(format!("{:<10}", pipeline.id)),
            Span::styled(format!("{:<12}", pipeline.state), paint.state(&pipeline.state)),
            Span::raw(format!("{epoch:<9}{:<10}{recovery:<10}{now:<8}", pipeline.failures)),
        ]);
        let used = line.width() as u16;
        frame.render_widget(line, upper);
        let room = Rect { x: upper.x + used.min(upper.width), width: upper.width.saturating_sub(used).min(SPEEDS), ..upper };
        let rates: Vec<u64> = watch.rates(pipeline.id).map(|rate| (rate * 10.0).round() as u64).collect();
        let rates = &rates[rates.len().saturating_sub(usize::from(room.width))..];
        frame.render_widget(Sparkline::default().data(rates).style(paint.of(Color::Green)), room);
        frame.render_widget(Line::styled(format!("  {}", layout(pipeline)), paint.dim()), lower);
    }
}

/// Who has which layers, or why nobody has.
fn layout(pipeline: &PipelineStatus) -> String {
    let stage = |s: &janus_wire::v1::StagePlace| format!("{} {}..{}", s.node, s.first_layer, s.end_layer);
    let stages = pipeline.stages.iter().map(stage).collect::<Vec<_>>().join(" > ");
    match (pipeline.reason.as_str(), stages.is_empty()) {
        ("", _) => stages,
        (reason, true) => reason.to_owned(),
        (reason, false) => format!("{reason}; was {stages}"),
    }
}

fn draw_members(frame: &mut Frame, area: Rect, watch: &Watch, paint: &Paint) {
    let members = &watch.answer.members;
    let name = members.iter().map(|m| m.id.chars().count()).max().unwrap_or(0).clamp(6, 20) as u16;
    let widths = [
        Constraint::Length(name),
        Constraint::Length(8),
        Constraint::Length(13),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Fill(1),
    ];
    let titles = Row::new(["MEMBER", "STATE", "ROLES", "LAYERS", "MS/LAYER", "MEMORY", "ADDRESS"]).style(paint.dim());
    let rows = members.iter().skip(watch.above).map(|member| {
        let state = Span::styled(member.state.clone(), paint.state(&member.state));
        let [id, roles, layers, speed, memory, address] = cells(member);
        Row::new([Line::raw(id), state.into(), roles.into(), layers.into(), speed.into(), memory.into(), address.into()])
    });
    frame.render_widget(Table::new(rows, widths).header(titles).column_spacing(1), area);
}

fn cells(member: &MemberStatus) -> [String; 6] {
    let layers = match member.end_layer > member.first_layer {
        true => format!("{}..{}", member.first_layer, member.end_layer),
        false => "-".to_owned(),
    };
    let speed = if member.ms_per_layer > 0.0 { format!("{:.2}", member.ms_per_layer) } else { "-".to_owned() };
    let roles = if member.roles.len() == 3 { "all".to_owned() } else { member.roles.join(",") };
    [member.id.clone(), roles, layers, speed, memory(member.memory_bytes), member.address.clone()]
}

fn memory(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1 << 30);
    if gib >= 0.95 { format!("{gib:.1} GiB") } else { format!("{:.0} MiB", gib * 1024.0) }
}

fn footing<'a>(watch: &'a Watch, members: Rect, paint: &Paint) -> Line<'a> {
    if let Some(reason) = &watch.silent {
        return Line::styled(format!("no answer: {reason}"), paint.state("silent"));
    }
    let shown = usize::from(members.height).saturating_sub(1);
    let below = watch.answer.members.len().saturating_sub(watch.above + shown);
    let keys = match (watch.above, below) {
        (0, 0) => "q quit".to_owned(),
        (above, below) => format!("q quit  up/down: {above} members above, {below} below"),
    };
    Line::styled(keys, paint.dim())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use janus_wire::v1::{RequestCounts, StagePlace, StatusResponse};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn member(id: &str, state: &str, roles: &[&str], layers: (u32, u32)) -> MemberStatus {
        MemberStatus {
            id: id.to_owned(),
            state: state.to_owned(),
            roles: roles.iter().map(ToString::to_string).collect(),
            address: "10.0.0.7:7071".to_owned(),
            first_layer: layers.0,
            end_layer: layers.1,
            memory_bytes: 3 << 30,
            ms_per_layer: if roles.contains(&"stage") { 3.9 } else { 0.0 },
            ..MemberStatus::default()
        }
    }

    fn cluster(microbatches: u64) -> StatusResponse {
        let place = |node: &str, first_layer, end_layer| StagePlace { node: node.to_owned(), first_layer, end_layer };
        let pipeline = |id, state: &str, reason: &str, stages| PipelineStatus {
            id,
            epoch: (3 << 32) + 2,
            state: state.to_owned(),
            reason: reason.to_owned(),
            stages,
            failures: 1,
            recovery_seconds: 1.25,
            microbatches,
        };
        StatusResponse {
            epoch: 3,
            leader: "coordinator-0".to_owned(),
            leader_address: "10.0.0.5:7070".to_owned(),
            members: vec![
                member("stage-0", "serving", &["stage"], (0, 12)),
                member("stage-1", "suspect", &["stage"], (12, 24)),
                member("stage-2", "spare", &["stage"], (0, 0)),
                member("painter-0", "serving", &["encoder", "decoder"], (0, 0)),
            ],
            pipelines: vec![
                pipeline(1, "ready", "", vec![place("stage-0", 0, 12), place("stage-1", 12, 24)]),
                pipeline(2, "parked", "no nodes for 24 layers", Vec::new()),
            ],
            requests: Some(RequestCounts { running: 4, queued: 17, parked: 2 }),
            store_reachable: true,
        }
    }

    fn screen(watch: &Watch, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, watch, true)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(row).collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }

    #[test]
    fn a_cluster_fits_a_small_terminal() {
        let mut watch = Watch::new(cluster(0));
        for (second, microbatches) in [(1, 10), (2, 30), (3, 70)] {
            watch.hear(Duration::from_secs(second), cluster(microbatches));
        }
        let expected = "\
janus  coordinator-0 at 10.0.0.5:7070 leads, epoch 3
requests  4 running  17 queued  2 parked

PIPELINE  STATE       EPOCH    FAILURES  RECOVERY  MICROBATCHES/S
1         ready       2        1         1.25 s    40.0    ▂▄█
  stage-0 0..12 > stage-1 12..24
2         parked      2        1         1.25 s    40.0    ▂▄█
  no nodes for 24 layers

MEMBER    STATE    ROLES         LAYERS  MS/LAYER MEMORY   ADDRESS
stage-0   serving  stage         0..12   3.90     3.0 GiB  10.0.0.7:7071
stage-1   suspect  stage         12..24  3.90     3.0 GiB  10.0.0.7:7071
stage-2   spare    stage         -       3.90     3.0 GiB  10.0.0.7:7071
painter-0 serving  encoder,decod -       -        3.0 GiB  10.0.0.7:7071









q quit";
        let drawn = screen(&watch, 80, 24);
        assert_eq!(drawn, expected.trim_end(), "\n{drawn}");
    }

    #[test]
    fn what_does_not_fit_is_counted_and_can_be_reached() {
        let mut answer = cluster(0);
        answer.members = (0..30).map(|i| member(&format!("stage-{i}"), "idle", &["stage"], (0, 0))).collect();
        let mut watch = Watch::new(answer);
        let top = screen(&watch, 80, 24);
        assert!(top.ends_with("q quit  up/down: 0 members above, 17 below"), "{top}");
        (0..40).for_each(|_| watch.scroll(1));
        let bottom = screen(&watch, 80, 24);
        assert!(bottom.contains("stage-29 ") && !bottom.contains("stage-28 "), "{bottom}");
    }

    #[test]
    fn silence_and_outages_are_said() {
        let mut watch = Watch::new(StatusResponse { store_reachable: false, ..StatusResponse::default() });
        watch.miss("connection refused".to_owned());
        let drawn = screen(&watch, 80, 24);
        for words in ["no leader", "the store is away", "this coordinator stands by", "no answer: connection refused"] {
            assert!(drawn.contains(words), "{words} is not in\n{drawn}");
        }
    }

    #[test]
    fn any_size_is_drawn() {
        let watch = Watch::new(cluster(0));
        for (width, height) in [(1, 1), (3, 40), (40, 3), (80, 6), (300, 100)] {
            screen(&watch, width, height);
        }
    }
}
