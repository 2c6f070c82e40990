//! The page of metrics: that of a real vLLM, whole, with the live figures put in.
//!
//! `tests/data/metrics/vllm-metrics.txt` was scraped from vLLM 0.32 under load. A page of the real size (63 KB, 700
//! lines, of which a picker reads five) matters: parsing it is what a scraper spends its time on.
//! Live are requests running and waiting, KV usage, prefix-cache, prompt and generation counters,
//! finished requests, LoRA and cache configuration. The rest (histograms, process figures) stays as
//! scraped. The page is cut at its live figures once per server, so that a scrape is a few
//! copies.

use std::fmt::Write as _;

use parking_lot::Mutex;

use super::engine::Readings;

const TEMPLATE: &str = include_str!("../../tests/data/metrics/vllm-metrics.txt");
const TEMPLATE_MODEL: &str = "tiny/llama";
/// LoRA label sets that stay on the page after they changed. vLLM keeps all of them; the newest
/// timestamp says which is true, and a scraper must cope with that.
const LORA_HISTORY: usize = 4;

/// What the page says about the server and never changes.
pub(super) struct PageConfig<'a> {
    pub(super) model: &'a str,
    pub(super) block_size: u32,
    pub(super) num_blocks: u32,
    pub(super) adapters: &'a [String],
}

/// A live figure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Live {
    Running,
    Waiting,
    KvUsage,
    Prompt,
    Cached,
    Computed,
    Generated,
    Finished,
    Aborted,
    /// The whole samples of `vllm:lora_requests_info`.
    Lora,
}

struct Sample {
    name: String,
    /// Everything before the value; the whole line with its end if the value is not live.
    text: String,
    live: Option<Live>,
}

struct Family {
    /// HELP and TYPE lines.
    head: String,
    samples: Vec<Sample>,
}

struct LoraLine {
    labels: String,
    /// Seconds since 1970.
    at: f64,
}

/// See the module.
pub(super) struct Page {
    families: Vec<Family>,
    /// The same page as long pieces of text, each followed by a figure.
    pieces: Vec<(String, Option<Live>)>,
    size: usize,
    num_blocks: u32,
    adapters: Vec<String>,
    lora: Mutex<Vec<LoraLine>>,
}

impl Page {
    pub(super) fn new(config: &PageConfig<'_>) -> Self {
        let mut families: Vec<Family> = Vec::new();
        for line in TEMPLATE.lines() {
            if line.starts_with("# HELP") {
                families.push(Family { head: format!("{line}\n"), samples: Vec::new() });
            } else if let Some(family) = families.last_mut() {
                if line.starts_with('#') {
                    let _ = writeln!(family.head, "{line}");
                } else {
                    family.samples.extend(sample(line, config));
                }
            }
        }
        if config.adapters.is_empty() {
            families.retain(|family| family.samples.iter().all(|s| s.live != Some(Live::Lora)));
        }
        let mut pieces = vec![(String::new(), None)];
        for family in &families {
            push(&mut pieces, &family.head, None);
            for sample in &family.samples {
                push(&mut pieces, &sample.text, sample.live);
            }
        }
        let size = pieces.iter().map(|(text, _)| text.len() + 32).sum::<usize>() + 1024;
        let (num_blocks, adapters) = (config.num_blocks, config.adapters.to_vec());
        Self { families, pieces, size, num_blocks, adapters, lora: Mutex::new(Vec::new()) }
    }

    /// The page. `names` are the values of `name[]`: samples with other names are left out, as in
    /// prometheus_client; empty means all. `nan` puts NaN for every live gauge.
    pub(super) fn render(&self, readings: &Readings, names: &[String], nan: bool, wall_seconds: f64) -> String {
        let mut out = String::with_capacity(if names.is_empty() { self.size } else { 4096 });
        if names.is_empty() {
            for (text, live) in &self.pieces {
                out.push_str(text);
                self.put(&mut out, *live, readings, nan, wall_seconds);
            }
            return out;
        }
        for family in &self.families {
            let mut headed = false;
            for sample in family.samples.iter().filter(|s| names.contains(&s.name)) {
                if !headed {
                    out.push_str(&family.head);
                    headed = true;
                }
                out.push_str(&sample.text);
                self.put(&mut out, sample.live, readings, nan, wall_seconds);
            }
        }
        out
    }

    fn put(&self, out: &mut String, live: Option<Live>, readings: &Readings, nan: bool, wall_seconds: f64) {
        let Some(live) = live else { return };
        let value = match live {
            Live::Running | Live::Waiting | Live::KvUsage if nan => f64::NAN,
            Live::Running => readings.running as f64,
            Live::Waiting => readings.waiting as f64,
            Live::KvUsage => f64::from(readings.used_blocks) / f64::from(self.num_blocks.max(1)),
            Live::Prompt => readings.prompt_tokens as f64,
            Live::Cached => readings.cached_tokens as f64,
            Live::Computed => readings.prompt_tokens.saturating_sub(readings.cached_tokens) as f64,
            Live::Generated => readings.generated_tokens as f64,
            Live::Finished => readings.finished as f64,
            Live::Aborted => readings.aborted as f64,
            Live::Lora => return self.put_lora(out, readings, wall_seconds),
        };
        // Debug writes a float as Python does: 4.0.
        let _ = writeln!(out, "{value:?}");
    }

    fn put_lora(&self, out: &mut String, readings: &Readings, wall_seconds: f64) {
        let list = |count: fn(&(usize, u32, u32)) -> u32| {
            let busy = readings.adapters.iter().filter(|a| count(a) > 0);
            busy.filter_map(|a| self.adapters.get(a.0)).map(|name| escaped(name)).collect::<Vec<_>>().join(",")
        };
        let (running, waiting) = (list(|a| a.1), list(|a| a.2));
        let labels = format!(
            "{{max_lora=\"{}\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"{waiting}\"}}",
            self.adapters.len()
        );
        let mut lines = self.lora.lock();
        lines.retain(|line| line.labels != labels);
        if lines.len() >= LORA_HISTORY {
            lines.remove(0);
        }
        lines.push(LoraLine { labels, at: wall_seconds });
        for line in lines.iter() {
            let _ = writeln!(out, "vllm:lora_requests_info{} {:?}", line.labels, line.at);
        }
    }
}

fn push(pieces: &mut Vec<(String, Option<Live>)>, text: &str, live: Option<Live>) {
    if let Some((last, end)) = pieces.last_mut()
        && end.is_none()
    {
        last.push_str(text);
        *end = live;
    } else {
        pieces.push((text.to_owned(), live));
    }
}

/// One line of the template; None for LoRA lines but one, which stands for all.
fn sample(line: &str, config: &PageConfig<'_>) -> Option<Sample> {
    let (series, _) = line.rsplit_once(' ')?;
    let name = series.split('{').next()?.to_owned();
    let has = |label: &str| series.contains(label);
    let live = match name.as_str() {
        "vllm:num_requests_running" => Some(Live::Running),
        "vllm:num_requests_waiting" => Some(Live::Waiting),
        "vllm:num_requests_waiting_by_reason" if has("reason=\"capacity\"") => Some(Live::Waiting),
        "vllm:kv_cache_usage_perc" => Some(Live::KvUsage),
        "vllm:prefix_cache_queries_total" | "vllm:prompt_tokens_total" => Some(Live::Prompt),
        "vllm:prefix_cache_hits_total" | "vllm:prompt_tokens_cached_total" => Some(Live::Cached),
        "vllm:prompt_tokens_by_source_total" if has("\"local_cache_hit\"") => Some(Live::Cached),
        "vllm:prompt_tokens_by_source_total" if has("\"local_compute\"") => Some(Live::Computed),
        "vllm:prompt_tokens_cached_by_source_total" if has("\"device\"") => Some(Live::Cached),
        "vllm:generation_tokens_total" => Some(Live::Generated),
        "vllm:request_success_total" if has("\"length\"") => Some(Live::Finished),
        "vllm:request_success_total" if has("\"abort\"") => Some(Live::Aborted),
        "vllm:lora_requests_info" if has("running_lora_adapters=\"\"") => {
            return Some(Sample { name, text: String::new(), live: Some(Live::Lora) });
        }
        "vllm:lora_requests_info" => return None,
        _ => None,
    };
    let model = |text: &str| text.replace(TEMPLATE_MODEL, &escaped(config.model));
    let text = match live {
        Some(_) => format!("{} ", model(series)),
        None if name == "vllm:cache_config_info" => format!("{}\n", cache_config(line, config)),
        None => format!("{}\n", model(line)),
    };
    Some(Sample { name, text, live })
}

fn cache_config(line: &str, config: &PageConfig<'_>) -> String {
    let (block, blocks) = (config.block_size, config.num_blocks);
    let tokens = u64::from(block) * u64::from(blocks);
    [
        (",block_size=\"32\"", format!(",block_size=\"{block}\"")),
        ("effective_attention_block_size=\"32\"", format!("effective_attention_block_size=\"{block}\"")),
        ("kv_cache_size_tokens=\"1536\"", format!("kv_cache_size_tokens=\"{tokens}\"")),
        ("num_gpu_blocks=\"48\"", format!("num_gpu_blocks=\"{blocks}\"")),
        ("num_gpu_blocks_override=\"48\"", "num_gpu_blocks_override=\"None\"".to_owned()),
    ]
    .iter()
    .fold(line.to_owned(), |line, (from, to)| line.replace(from, to))
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The values of `name[]` in a query string.
pub(super) fn names(query: &str) -> Vec<String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| decoded(key) == "name[]")
        .map(|(_, value)| decoded(value))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |digit: u8| char::from(digit).to_digit(16).map(|d| d as u8);
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                out.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = tail;
            }
            _ => {
                out.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(adapters: &[String]) -> Page {
        Page::new(&PageConfig { model: "a \"model\"", block_size: 16, num_blocks: 200, adapters })
    }

    fn readings() -> Readings {
        Readings {
            running: 3,
            waiting: 7,
            used_blocks: 50,
            prompt_tokens: 900,
            cached_tokens: 400,
            ..Default::default()
        }
    }

    #[test]
    fn the_page_is_whole_and_live() {
        let text = page(&[]).render(&readings(), &[], false, 1.0);
        for line in [
            "vllm:num_requests_running{engine=\"0\",model_name=\"a \\\"model\\\"\"} 3.0",
            "vllm:num_requests_waiting{engine=\"0\",model_name=\"a \\\"model\\\"\"} 7.0",
            "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"a \\\"model\\\"\"} 0.25",
            "vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"a \\\"model\\\"\"} 900.0",
            "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"a \\\"model\\\"\"} 400.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing");
        }
        let config = text.lines().find(|l| l.starts_with("vllm:cache_config_info{")).unwrap();
        for label in [",block_size=\"16\"", "num_gpu_blocks=\"200\"", "kv_cache_size_tokens=\"3200\""] {
            assert!(config.contains(label), "{label} is missing in {config}");
        }
        assert!(!text.contains("\"48\"") && !text.contains(TEMPLATE_MODEL) && !text.contains("lora_requests_info"));
        // Nothing was lost but the LoRA family: its head and its four lines.
        assert_eq!(text.lines().count(), TEMPLATE.lines().count() - 6);
    }

    #[test]
    fn names_select_samples() {
        let page = page(&[]);
        let two = ["vllm:num_requests_waiting".to_owned(), "vllm:cache_config_info".to_owned()];
        let text = page.render(&readings(), &two, false, 1.0);
        assert_eq!(text.lines().count(), 6);
        assert!(text.lines().nth(1) == Some("# TYPE vllm:num_requests_waiting gauge"), "{text}");
        // A histogram's samples have names of their own.
        assert_eq!(page.render(&readings(), &["vllm:time_to_first_token_seconds".to_owned()], false, 1.0), "");
        assert_eq!(names("name[]=a%3Ab&x=1&name%5B%5D=c+d&name[]"), ["a:b", "c d"]);
        assert_eq!(names("name[]=%zz%4"), ["%zz%4"]);
        assert!(names("").is_empty());
    }

    #[test]
    fn the_newest_lora_line_is_the_true_one_and_old_ones_stay_for_a_while() {
        let page = page(&["sql".to_owned(), "chat".to_owned()]);
        let with = |adapters: &[(usize, u32, u32)], at| {
            let readings = Readings { adapters: adapters.to_vec(), ..Default::default() };
            let text = page.render(&readings, &["vllm:lora_requests_info".to_owned()], false, at);
            text.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        with(&[], 1.0);
        let lines = with(&[(0, 1, 0), (1, 1, 2)], 2.0);
        assert_eq!(
            lines,
            [
                "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 1.0",
                "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"sql,chat\",waiting_lora_adapters=\"chat\"} 2.0"
            ]
        );
        for (at, n) in [(3.0, 1), (4.0, 2), (5.0, 3)] {
            with(&[(0, n % 2, n)], at);
            with(&[(1, n, n % 2)], at);
        }
        assert_eq!(with(&[], 9.0).len(), LORA_HISTORY);
    }

    #[test]
    fn a_faulty_page_says_nan() {
        let text = page(&[]).render(&readings(), &["vllm:kv_cache_usage_perc".to_owned()], true, 1.0);
        assert!(text.ends_with("} NaN\n"), "{text}");
    }
}
