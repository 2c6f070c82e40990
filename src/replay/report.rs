//! The results as one HTML file: tables and plots, nothing that is fetched from elsewhere.
//!
//! Plots are SVG in the page, drawn here; there is no script in it, so it opens anywhere and can be attached to a
//! ticket.

mod plot;

use std::fmt::Write as _;

use plot::{Axis, Plot, Series};

use super::run::SLICES;
use super::table::{Figures, Results, quantile};

/// Points of a distribution.
const POINTS: usize = 60;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222;\
background:#fff}table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;text-align:right;border-bottom:1px \
solid #ddd}td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}svg{max-width:100%;height:auto}\
.plots{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0}code{background:#f3f3f3;padding:0 .2em}";

/// What was replayed, for the head of the report: a name and a value each.
pub type Facts = [(&'static str, String)];

/// The report.
pub fn html(results: &Results, facts: &Facts) -> String {
    let mut out = String::with_capacity(1 << 16);
    out.push_str("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Pointsman replay</title>");
    // Writing to a string cannot fail.
    let _ = write!(out, "<style>{STYLE}</style></head><body>\n<h1>Replay</h1>\n<table>\n");
    for (name, value) in facts {
        let _ = writeln!(out, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    }
    out.push_str("</table>\n<h2>Results</h2>\n");
    table(&mut out, results);
    let _ = writeln!(
        out,
        "<p>Times to first token in seconds, from the arrival at the picker on. Ratios are to <code>{}</code>, the \
         first configuration: below 1 is better. In time is a first token within {} s.</p>",
        escape(results.names.first().map_or("", String::as_str)),
        results.goodput
    );
    if results.loads.len() > 1 {
        out.push_str("<h2>Over load</h2>\n<div class=\"plots\">\n");
        let over = |title: &str, y: Axis, value: fn(&Figures) -> f64| over_load(results, title, y, value);
        out.push_str(&over("Mean time to first token", Axis::log("s"), |f| f.mean));
        out.push_str(&over("99th percentile", Axis::log("s"), |f| f.p99));
        out.push_str(&over("In time", Axis::linear("%"), |f| f.good * 100.0));
        out.push_str(&over("Prompt tokens cached", Axis::linear("%"), |f| f.hit * 100.0));
        out.push_str(&over("Imbalance: most loaded pod over the mean", Axis::linear("×"), |f| f.imbalance));
        out.push_str("</div>\n");
    }
    for (l, load) in results.loads.iter().enumerate() {
        let at = if load.is_nan() { "the trace's own rate".to_owned() } else { format!("load {load}") };
        let _ = writeln!(out, "<h2>At {at}</h2>\n<div class=\"plots\">");
        out.push_str(&distribution(results, l));
        out.push_str(&timeline(results, l));
        if results.loads.len() == 1 {
            out.push_str(&imbalance(results, l));
        }
        out.push_str("</div>\n");
    }
    out.push_str("</body></html>\n");
    out
}

fn table(out: &mut String, results: &Results) {
    out.push_str(
        "<table>\n<tr><th>load</th><th>configuration</th><th>mean</th><th>p50</th><th>p90</th><th>p99</th><th>cached \
         %</th><th>in time %</th><th>imbalance</th><th>false hits %</th><th>held s</th><th>ratio</th><th>ratio \
         p99</th></tr>\n",
    );
    for (l, load) in results.loads.iter().enumerate() {
        for (c, name) in results.names.iter().enumerate() {
            let f = results.figures(c, l);
            let load = if load.is_nan() { "as is".into() } else { load.to_string() };
            let _ = writeln!(
                out,
                "<tr><td>{load}</td><td>{}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td><td>{:.1}</td>\
                 <td>{:.1}</td><td>{:.2}</td><td>{:.2}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td></tr>",
                escape(name),
                f.mean,
                f.p50,
                f.p90,
                f.p99,
                f.hit * 100.0,
                f.good * 100.0,
                f.imbalance,
                f.false_hit * 100.0,
                f.held,
                f.ratio,
                f.ratio_p99
            );
        }
    }
    out.push_str("</table>\n");
}

fn over_load(results: &Results, title: &str, y: Axis, value: fn(&Figures) -> f64) -> String {
    let mut order: Vec<usize> = (0..results.loads.len()).collect();
    order.sort_by(|a, b| results.loads[*a].total_cmp(&results.loads[*b]));
    let series = results.names.iter().enumerate().map(|(c, name)| Series {
        name: escape(name),
        points: order.iter().map(|l| (results.loads[*l], value(&results.figures(c, *l)))).collect(),
        dots: true,
    });
    Plot { title, x: Axis::linear("load"), y, series: series.collect() }.svg()
}

/// All times of a configuration at a load, ascending.
fn times(results: &Results, config: usize, load: usize) -> Vec<f64> {
    let cells = (0..results.seeds.len()).filter_map(|seed| results.cell(config, load, seed));
    let mut all: Vec<f64> = cells.flat_map(|cell| cell.outcome.ttft.iter().copied()).collect();
    all.sort_by(f64::total_cmp);
    all
}

fn distribution(results: &Results, load: usize) -> String {
    let series = results.names.iter().enumerate().map(|(c, name)| {
        let times = times(results, c, load);
        let point = |i: usize| {
            let share = i as f64 / POINTS as f64;
            (quantile(&times, share).max(1e-3), share * 100.0)
        };
        Series { name: escape(name), points: (1..=POINTS).map(point).collect(), dots: false }
    });
    let (x, y) = (Axis::log("s to first token"), Axis::linear("% of requests"));
    Plot { title: "Distribution of the time to first token", x, y, series: series.collect() }.svg()
}

fn timeline(results: &Results, load: usize) -> String {
    let series = results.names.iter().enumerate().map(|(c, name)| {
        let mut slices = vec![(0.0, 0u32); SLICES];
        let mut seconds: f64 = 0.0;
        for cell in (0..results.seeds.len()).filter_map(|seed| results.cell(c, load, seed)) {
            seconds = seconds.max(cell.seconds);
            for (slice, (sum, n)) in slices.iter_mut().zip(&cell.outcome.timeline) {
                *slice = (slice.0 + sum, slice.1 + n);
            }
        }
        let point = |(i, (sum, n)): (usize, &(f64, u32))| {
            (*n > 0).then(|| ((i as f64 + 0.5) / SLICES as f64 * seconds, sum / f64::from(*n)))
        };
        Series { name: escape(name), points: slices.iter().enumerate().filter_map(point).collect(), dots: false }
    });
    let (x, y) = (Axis::linear("s since the begin"), Axis::log("s"));
    Plot { title: "Mean time to first token over the run", x, y, series: series.collect() }.svg()
}

fn imbalance(results: &Results, load: usize) -> String {
    let bars = results.names.iter().enumerate().map(|(c, name)| (escape(name), results.figures(c, load).imbalance));
    plot::bars("Imbalance: most loaded pod over the mean", &bars.collect::<Vec<_>>())
}

/// `text` as it may stand in HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::compare::{Cell, Plan};
    use crate::replay::run::{Outcome, Scene};

    fn results(loads: Vec<f64>) -> Results {
        let mut cells = Vec::new();
        for load in 0..loads.len().max(1) {
            for config in 0..2 {
                let ttft = (1..=50).map(|i| f64::from(i) * 0.01 * (1 + config + load) as f64).collect();
                let timeline = vec![(1.0, 2); SLICES];
                let outcome = Outcome { ttft, imbalance: 1.25, timeline, input_tokens: 10, ..Outcome::default() };
                cells.push(Cell { config, load, seed: 0, requests: 50, seconds: 60.0, speedup: 1.0, outcome });
            }
        }
        let plan = Plan { loads, seeds: vec![1], seconds: 60.0, scene: Scene::default() };
        Results::new(vec!["first".into(), "<script>alert(1)</script>".into()], &plan, 2.0, cells)
    }

    #[test]
    fn it_has_every_plot_and_every_figure_and_nothing_from_elsewhere() {
        let page = html(&results(vec![0.5, 0.8]), &[("trace", "a & b".into())]);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<svg").count(), 5 + 2 * 2);
        for text in ["At load 0.5", "At load 0.8", "Imbalance", "Distribution", "a &amp; b", ">0.255<", ">2.000<"] {
            assert!(page.contains(text), "{text}");
        }
        for text in ["<script", "src=", "href=", "url(", "@import", "NaN"] {
            assert!(!page.contains(text), "{text}");
        }
        let links = page.split("http").count() - 1;
        assert_eq!(links, page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
    }

    #[test]
    fn one_rate_is_shown_without_a_load_axis() {
        let page = html(&results(vec![]), &[]);
        assert!(page.contains("own rate") && !page.contains("Over load") && page.contains("Imbalance"));
    }
}
