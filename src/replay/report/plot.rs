//! Line and bar plots as SVG text. Names come in escaped.

use std::fmt::Write as _;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
/// Room at the left, top, right, bottom.
const MARGIN: [f64; 4] = [52.0, 28.0, 12.0, 40.0];
/// Colours that stay apart for most kinds of colour blindness.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

/// One axis.
#[derive(Clone, Copy)]
pub struct Axis {
    /// What it counts.
    pub label: &'static str,
    log: bool,
}

impl Axis {
    /// A linear axis.
    pub const fn linear(label: &'static str) -> Self {
        Self { label, log: false }
    }

    /// A logarithmic axis; values below a thousandth count as one.
    pub const fn log(label: &'static str) -> Self {
        Self { label, log: true }
    }

    fn place(self, value: f64) -> f64 {
        if self.log { value.max(1e-3).log10() } else { value }
    }

    /// Ends of the axis that hold all `values`, and its ticks.
    fn range(self, values: impl Iterator<Item = f64>) -> (f64, f64, Vec<f64>) {
        let finite = values.filter(|v| v.is_finite()).map(|v| self.place(v));
        let (low, high) = finite.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return (0.0, 1.0, vec![]);
        }
        if self.log {
            let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
            let decades = low as i32..=high as i32;
            return (low, high, decades.map(|d| 10f64.powi(d)).collect());
        }
        let span = (high - low).max(high.abs() * 0.05).max(1e-6);
        let raw = span / 5.0;
        let unit = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * unit).into_iter().find(|s| *s >= raw).unwrap_or(unit);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil().max((low / step).floor() + 1.0) * step);
        let ticks = ((high - low) / step).round() as usize;
        (low, high, (0..=ticks).map(|i| low + step * i as f64).collect())
    }
}

/// One line.
pub struct Series {
    /// Its name, escaped.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
    /// Whether the points are marked.
    pub dots: bool,
}

/// A plot of lines.
pub struct Plot<'a> {
    /// Above it.
    pub title: &'a str,
    /// Horizontal.
    pub x: Axis,
    /// Vertical.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
}

impl Plot<'_> {
    /// The plot in a figure.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|s| s.points.iter());
        let (x0, x1, x_ticks) = self.x.range(points().map(|p| p.0));
        let (y0, y1, y_ticks) = self.y.range(points().map(|p| p.1));
        let [left, top, right, bottom] = MARGIN;
        let x = |v: f64| left + (self.x.place(v) - x0) / (x1 - x0) * (WIDTH - left - right);
        let y = |v: f64| HEIGHT - bottom - (self.y.place(v) - y0) / (y1 - y0) * (HEIGHT - top - bottom);
        let legend = 16.0 * self.series.len() as f64;
        let mut out = open(self.title, HEIGHT + legend);
        for tick in x_ticks {
            let at = x(tick);
            let _ = write!(
                out,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{:.1}\" stroke=\"#eee\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - bottom,
                HEIGHT - bottom + 15.0,
                number(tick)
            );
        }
        for tick in y_ticks {
            let at = y(tick);
            let _ = write!(
                out,
                "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#eee\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - right,
                left - 5.0,
                at + 4.0,
                number(tick)
            );
        }
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><text x=\"6\" y=\"{:.1}\">{}</text>",
            (left + WIDTH - right) / 2.0,
            HEIGHT - 8.0,
            self.x.label,
            top - 4.0,
            self.y.label
        );
        for (i, series) in self.series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let line: Vec<String> =
                series.points.iter().map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py))).collect();
            let _ = write!(
                out,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
                line.join(" ")
            );
            for (px, py) in series.points.iter().filter(|_| series.dots) {
                let _ = write!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}: {}</title></circle>",
                    x(*px),
                    y(*py),
                    series.name,
                    number(*py)
                );
            }
            let at = HEIGHT + 16.0 * i as f64;
            let _ = write!(
                out,
                "<rect x=\"{left}\" y=\"{at:.1}\" width=\"18\" height=\"4\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left + 24.0,
                at + 6.0,
                series.name
            );
        }
        out.push_str("</svg></figure>\n");
        out
    }
}

/// Bars with their names and values; names are escaped.
pub fn bars(title: &str, values: &[(String, f64)]) -> String {
    let most = values.iter().map(|(_, v)| *v).fold(1e-9, f64::max);
    let mut out = open(title, 36.0 + 34.0 * values.len() as f64);
    for (i, (name, value)) in values.iter().enumerate() {
        let at = 36.0 + 34.0 * i as f64;
        let _ = write!(
            out,
            "<text x=\"8\" y=\"{:.1}\">{name}: {}</text><rect x=\"8\" y=\"{:.1}\" width=\"{:.1}\" height=\"10\" fill=\"{}\"/>",
            at + 10.0,
            number(*value),
            at + 14.0,
            value.max(0.0) / most * (WIDTH - 20.0),
            COLOURS[i % COLOURS.len()]
        );
    }
    out.push_str("</svg></figure>\n");
    out
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<figure><svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"system-ui,sans-serif\" font-size=\"11\">\
         <text x=\"{}\" y=\"13\" text-anchor=\"middle\" font-size=\"13\" font-weight=\"600\">{title}</text>",
        WIDTH / 2.0
    )
}

/// A number with at most three digits behind the point.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.to_owned() }
}
