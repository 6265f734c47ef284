//! A plot of writes and of processor time per write against clients, both on logarithmic axes, as SVG.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Of one panel, in pixels.
const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 220.0;
const MARGIN: f64 = 60.0;
const COLOURS: [&str; 5] = ["#c0392b", "#2980b9", "#27ae60", "#8e44ad", "#7f8c8d"];

/// Points by the name of their line.
type Curves = BTreeMap<String, Vec<(f64, f64)>>;

/// A panel for each medium and quantity.
#[derive(Default)]
pub struct Plot {
    panels: BTreeMap<(String, &'static str), Curves>,
}

impl Plot {
    pub fn point(&mut self, medium: &str, system: &str, clients: usize, rate: f64, cpu: f64) {
        for (quantity, value) in [("writes/s", rate), ("µs of processor per write", cpu)] {
            let lines = self.panels.entry((medium.to_owned(), quantity)).or_default();
            lines.entry(system.to_owned()).or_default().push((clients as f64, value));
        }
    }

    /// Next to the table of results.
    pub fn write(&self, name: &str) {
        let table = crate::report::path();
        std::fs::write(table.with_file_name(name), self.svg()).unwrap();
    }

    fn svg(&self) -> String {
        let media: Vec<&String> = self.panels.keys().map(|(medium, _)| medium).collect();
        let (panel_width, panel_height) = (WIDTH + 2.0 * MARGIN, HEIGHT + MARGIN + 20.0);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            2.0 * panel_width,
            media.len() as f64 / 2.0 * panel_height + 20.0
        );
        for (number, ((medium, quantity), lines)) in self.panels.iter().enumerate() {
            let left = (number % 2) as f64 * panel_width + MARGIN;
            let top = (number / 2) as f64 * panel_height + 30.0;
            panel(&mut svg, left, top, &format!("{medium}: {quantity}"), lines);
        }
        svg + "</svg>\n"
    }
}

fn panel(svg: &mut String, left: f64, top: f64, title: &str, lines: &BTreeMap<String, Vec<(f64, f64)>>) {
    let points = || lines.values().flatten().filter(|(_, y)| y.is_finite() && *y > 0.0);
    let most = points().map(|p| p.0).fold(1.0, f64::max).log2().max(1.0);
    let low = points().map(|p| p.1).fold(f64::MAX, f64::min).log10().floor();
    let high = points().map(|p| p.1).fold(f64::MIN, f64::max).log10().ceil().max(low + 1.0);
    let x = |clients: f64| left + clients.log2() / most * WIDTH;
    let y = |value: f64| top + HEIGHT - (value.log10() - low) / (high - low) * HEIGHT;
    let bottom = top + HEIGHT;
    writeln!(svg, "<text x=\"{left:.0}\" y=\"{:.0}\" font-weight=\"bold\">{title}</text>", top - 10.0).unwrap();
    writeln!(
        svg,
        "<rect x=\"{left:.0}\" y=\"{top:.0}\" width=\"{WIDTH:.0}\" height=\"{HEIGHT:.0}\" fill=\"none\" stroke=\"#333\"/>"
    )
    .unwrap();
    let mut decade = low;
    while decade <= high {
        let at = y(10_f64.powf(decade));
        writeln!(svg, "<line x1=\"{left:.0}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>", left + WIDTH)
            .unwrap();
        writeln!(svg, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", left - 4.0, at + 4.0, 10_f64.powf(decade))
            .unwrap();
        decade += 1.0;
    }
    for clients in lines.values().next().into_iter().flatten().map(|p| p.0) {
        writeln!(svg, "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{clients}</text>", x(clients), bottom + 14.0)
            .unwrap();
    }
    writeln!(svg, "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">clients</text>", left + WIDTH / 2.0, bottom + 28.0)
        .unwrap();
    for (number, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let line: Vec<String> = points.iter().filter(|p| p.1 > 0.0).map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", line.join(" ")).unwrap();
        let at = top + 16.0 + 14.0 * number as f64;
        writeln!(svg, "<text x=\"{:.0}\" y=\"{at:.0}\" fill=\"{colour}\">{name}</text>", left + 8.0).unwrap();
    }
}
