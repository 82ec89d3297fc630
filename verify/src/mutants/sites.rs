//! Where a kernel's text can be made wrong, and how.
//!
//! Every mistake is an insertion that changes nothing while it is not chosen: `a < b` becomes `a < mutant(7) + b`, `x[i]` becomes
//! `x[mutant(8) + i]`, `sum += v` becomes `sum += narrow(9) || v`, and a barrier is passed by.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A barrier or fence is left out.
    Barrier,
    /// Asynchronous copies or products are not committed, or one group too few is waited for.
    Wait,
    /// A comparison is off by one.
    Bound,
    /// An index or a pointer is off by one.
    Offset,
    /// What is added to a sum has the precision of bf16; if it is an integer, it is off by one.
    Accumulator,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Barrier => "barrier",
            Kind::Wait => "wait",
            Kind::Bound => "bound",
            Kind::Offset => "offset",
            Kind::Accumulator => "accumulator",
        }
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    pub file: String,
    pub line: usize,
    /// From 1, in bytes.
    pub column: usize,
    pub kind: Kind,
    /// The line as it is written, and the one after it.
    pub text: String,
    pub after: String,
}

struct Found {
    at: usize,
    kind: Kind,
    /// Where what is inserted; # stands for the number.
    insertions: Vec<(usize, String)>,
}

/// All mistakes that can be made in an expanded text, and the text with all of them in it, numbered from `first`.
pub fn plant(expanded: &str, first: u32) -> (Vec<Site>, String) {
    let code = blank(expanded);
    let lines = origins(expanded);
    let skipped = skipped(&code);
    let line_of = |at: usize| lines.partition_point(|(start, ..)| *start <= at).checked_sub(1).map(|line| &lines[line]);
    let file_of = |at| line_of(at).map(|(_, file, _)| file.as_str());
    let pointers: BTreeSet<_> = pointers(&code).map(|(at, name)| (file_of(at), name)).collect();
    let mut found: Vec<Found> = Vec::new();

    for call in CALL.captures_iter(&code) {
        let (Some(whole), Some(name)) = (call.get(0), call.get(1)) else { continue };
        let (start, open) = (whole.start(), whole.end() - 1);
        let Some(end) = closing(&code, open) else { continue };
        if code[end + 1..].trim_start().starts_with('{') {
            continue; // where it is defined
        }
        let kind = if name.as_str().contains("_wait<") || name.as_str().ends_with("_commit") { Kind::Wait } else { Kind::Barrier };
        let instead = call.get(2).map_or("(void)0".to_owned(), |groups| {
            let wait = name.as_str().split('<').next().unwrap_or_default();
            format!("{wait}<({}) + 1>{}", groups.as_str(), &code[open..=end])
        });
        let insertions = vec![(start, format!("(swara::mutant(#) ? {instead} : ")), (end + 1, ")".to_owned())];
        found.push(Found { at: start, kind, insertions });
    }
    let mut insert = |at, kind, before: usize, text: &str| found.push(Found { at, kind, insertions: vec![(before, text.to_owned())] });
    for compare in COMPARISON.captures_iter(&code) {
        let (Some(whole), Some(operator)) = (compare.get(0), compare.get(1)) else { continue };
        if code[whole.end()..].starts_with("nullptr") {
            continue;
        }
        let one = if matches!(operator.as_str(), "<=" | ">") { "-swara::mutant(#) + " } else { "swara::mutant(#) + " };
        insert(operator.start(), Kind::Bound, whole.end(), one);
    }
    for limit in LIMIT.find_iter(&code) {
        insert(limit.start(), Kind::Bound, limit.end(), "swara::mutant(#) + ");
    }
    for index in INDEX.find_iter(&code) {
        let open = index.end() - 1;
        if code[..open].ends_with(')') && opening(&code, open - 1).is_none_or(|at| code[at + 1..].starts_with(['&', '*'])) {
            continue; // a declaration
        }
        let line = code[..open].rfind('\n').map_or(0, |i| i + 1);
        let shared = code[line..open].contains("__shared__");
        if !shared && !declares(&code[statement(&code, open)..open]) {
            insert(open, Kind::Offset, open + 1, "swara::mutant(#) + ");
        }
    }
    for sum in POINTER_SUM.captures_iter(&code) {
        let (Some(whole), Some(name)) = (sum.get(0), sum.get(1)) else { continue };
        // In another file the name may be another thing.
        if pointers.contains(&(file_of(name.start()), name.as_str())) {
            insert(name.start(), Kind::Offset, whole.end(), "swara::mutant(#) + ");
        }
    }
    for add in ADDITION.find_iter(&code) {
        insert(add.start() + 1, Kind::Accumulator, add.end(), "swara::narrow(#) || ");
    }
    for call in FUSED.find_iter(&code) {
        let Some(end) = closing(&code, call.end() - 1) else { continue };
        if let Some(sum) = LAST_NAME.find(&code[call.end()..end]) {
            insert(call.start(), Kind::Accumulator, call.end() + sum.start() + 2, "swara::narrow(#) || ");
        }
    }
    for call in MATRIX.captures_iter(&code) {
        let (Some(whole), Some(sums)) = (call.get(0), call.get(1)) else { continue };
        insert(whole.start(), Kind::Accumulator, whole.start(), &format!("swara::narrow_each(#, {}), ", sums.as_str()));
    }

    found.retain(|site| !skipped[site.at]);
    found.sort_by_key(|site| (site.at, site.kind));
    let mut insertions = Vec::new();
    let mut sites = Vec::new();
    for (number, Found { at, kind, insertions: texts }) in found.into_iter().enumerate() {
        let number = (number as u32 + first).to_string();
        insertions.extend(texts.into_iter().map(|(at, text)| (at, text.replace('#', &number))));
        let (start, file, line) = line_of(at).cloned().unwrap_or_default();
        let mut text = expanded[start..].lines().map(|line| line.trim().trim_end_matches('\\').trim_end().to_owned());
        let (text, after) = (text.next().unwrap_or_default(), text.next().unwrap_or_default());
        sites.push(Site { file, line, column: at - start + 1, kind, text, after });
    }
    insertions.sort_by_key(|(at, _)| *at);
    let mut text = String::with_capacity(2 * expanded.len());
    let mut done = 0;
    for (at, insertion) in &insertions {
        text.push_str(&expanded[done..*at]);
        text.push_str(insertion);
        done = *at;
    }
    text.push_str(&expanded[done..]);
    (sites, text)
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of this file")
}

static CALL: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"\b(__syncthreads|__syncwarp|__threadfence|grid_barrier|wait_for_predecessors|after_predecessors|mbarrier_(?:arrive|wait)|cp_async_commit|wgmma_(?:fence|commit)|(?:cp_async|wgmma)_wait<([^<>()]*)>)\(",
    )
});
// Template brackets have no spaces around them.
static COMPARISON: LazyLock<Regex> = LazyLock::new(|| regex(r" (<|<=|>|>=|==|!=) "));
static LIMIT: LazyLock<Regex> = LazyLock::new(|| regex(r"\b(?:min|max)\("));
static INDEX: LazyLock<Regex> = LazyLock::new(|| regex(r"[\w\])]\["));
static POINTER_SUM: LazyLock<Regex> = LazyLock::new(|| regex(r"(?:^|[^.\w])([A-Za-z_]\w*) \+ "));
static ADDITION: LazyLock<Regex> = LazyLock::new(|| regex(r" [+-]= "));
static FUSED: LazyLock<Regex> = LazyLock::new(|| regex(r"\b(?:__fmaf_rn|fmaf)\("));
static LAST_NAME: LazyLock<Regex> = LazyLock::new(|| regex(r", [A-Za-z_]\w*$"));
static MATRIX: LazyLock<Regex> = LazyLock::new(|| regex(r"\bmultiply_accumulate\(([^,()]+),"));
// `T* x`, but not `a * b`.
static POINTER: LazyLock<Regex> = LazyLock::new(|| regex(r"\w\* ?(?:const |volatile |__restrict__ )*([A-Za-z_]\w*)"));
// Two names in a row, with or without extents, or one more name after a list in braces.
static DECLARATION: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"^\s*(?:,\s*|(?:[A-Za-z_][\w:]*(?:<[^;=]*>)?(?:\s*[&*]+\s*|\s+))+)[A-Za-z_]\w*(?:\[[^\]]*\])*(?:,\s*\w+(?:\[[^\]]*\])*)*$")
});

fn declares(before: &str) -> bool {
    let first = before.split_whitespace().next().unwrap_or_default();
    let reference = before.starts_with('&'); // to an array, `float (&v)[2][4]`
    reference || (!matches!(first, "return" | "else" | "case") && DECLARATION.is_match(before.trim_end()))
}

/// Where the statement that holds `at` begins.
fn statement(code: &str, at: usize) -> usize {
    code[..at].rfind([';', '{', '}', '\n', '(']).map_or(0, |i| i + 1)
}

fn pointers(code: &str) -> impl Iterator<Item = (usize, &str)> {
    POINTER.captures_iter(code).filter_map(|c| c.get(1)).map(|name| (name.start(), name.as_str()))
}

/// The bracket that the one at `close` closes.
fn opening(code: &str, close: usize) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in code[..=close].char_indices().rev() {
        match c {
            ')' => depth += 1,
            '(' if depth == 1 => return Some(i),
            '(' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The bracket that closes the one at `open`.
fn closing(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in code[open..].char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return Some(open + i),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The files that an expanded text was made of.
pub fn files(expanded: &str) -> BTreeSet<String> {
    origins(expanded).into_iter().map(|(_, file, _)| file).collect()
}

/// Start, file and number of every line, by the `#line` directives.
fn origins(text: &str) -> Vec<(usize, String, usize)> {
    let (mut file, mut number, mut at) = (String::new(), 1, 0);
    let mut lines = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some(rest) = line.strip_prefix("#line ") {
            let (n, name) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
            (number, file) = (n.parse().unwrap_or(1), name.trim_matches('"').to_owned());
        } else {
            lines.push((at, file.clone(), number));
            number += 1;
        }
        at += line.len();
    }
    lines
}

/// Comments and strings as blanks, everything else in its place.
fn blank(text: &str) -> String {
    static QUIET: LazyLock<Regex> = LazyLock::new(|| regex(r#"//[^\n]*|(?s:/\*.*?\*/)|"(?:[^"\\\n]|\\.)*""#));
    let spaces = |c: &regex::Captures| c[0].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect::<String>();
    QUIET.replace_all(text, spaces).into_owned()
}

/// What is no kernel code or not evaluated at run time: text for either half of the emulator's conditionals, directives, templates'
/// heads, constants, assertions, launch bounds.
fn skipped(code: &str) -> Vec<bool> {
    let mut skipped = vec![false; code.len()];
    static CONSTANT: LazyLock<Regex> = LazyLock::new(|| {
        regex(
            r"\bif constexpr \(|\bstatic_assert\(|\b__launch_bounds__\(|\balignas\(|\bdecltype\(|\bsizeof\(|\bconstexpr\b|\busing\b|\benum\b|\btemplate <",
        )
    });
    for found in CONSTANT.find_iter(code) {
        let end = match &code[found.start()..found.end()] {
            text if text.ends_with('(') => closing(code, found.end() - 1),
            text if text.starts_with("template") => head_end(code, found.end() - 1),
            _ => code[found.end()..].find([';', '{']).map(|i| found.end() + i),
        };
        skipped[found.start()..end.unwrap_or(code.len())].fill(true);
    }
    // Nesting of conditionals; true: one that asks for the emulator.
    let mut open: Vec<bool> = Vec::new();
    let mut at = 0;
    let mut continued = false;
    for line in code.split_inclusive('\n') {
        let text = line.trim_start();
        if text.starts_with("#if") {
            open.push(text.contains("SWARA_EMULATOR"));
        } else if text.starts_with("#endif") {
            open.pop();
        }
        let directive = text.starts_with('#') && !text.starts_with("#define");
        let asks = open.contains(&true) || code[at..].starts_with("#endif");
        if directive || asks {
            skipped[at..at + line.len()].fill(true);
        }
        if text.starts_with("#define") && !continued {
            // The macro's own name and parameters.
            let head = line.find(')').map_or(line.len(), |i| i + 1);
            skipped[at..at + head].fill(true);
        }
        continued = line.trim_end().ends_with('\\');
        at += line.len();
    }
    skipped
}

/// The end of a template's head that opens with the `<` at `open`.
fn head_end(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in code[open..].char_indices() {
        match c {
            '<' => depth += 1,
            '>' if depth == 1 => return Some(open + i + 1),
            '>' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planted(text: &str) -> (Vec<(Kind, usize)>, String) {
        let (sites, text) = plant(text, 1);
        (sites.iter().map(|s| (s.kind, s.column)).collect(), text)
    }

    #[test]
    fn every_kind_is_found_and_planted() {
        let (sites, text) = planted("__syncthreads();\n");
        assert_eq!((sites, text.as_str()), (vec![(Kind::Barrier, 1)], "(swara::mutant(1) ? (void)0 : __syncthreads());\n"));
        let (_, text) = planted("cp_async_wait<STAGES - 2>();");
        assert_eq!(text, "(swara::mutant(1) ? cp_async_wait<(STAGES - 2) + 1>() : cp_async_wait<STAGES - 2>());");
        let (sites, text) = planted("wgmma_wait<0>(sums);");
        assert_eq!((sites[0].0, text.as_str()), (Kind::Wait, "(swara::mutant(1) ? wgmma_wait<(0) + 1>(sums) : wgmma_wait<0>(sums));"));
        let (sites, text) = planted("mbarrier_wait(full[i], p);");
        assert_eq!(
            (sites[0].0, text.as_str()),
            (Kind::Barrier, "(swara::mutant(1) ? (void)0 : mbarrier_wait(full[swara::mutant(2) + i], p));")
        );
        let (_, text) = planted("if (a <= b) y[i] = tile[j][k];");
        assert_eq!(text, "if (a <= -swara::mutant(1) + b) y[swara::mutant(2) + i] = tile[swara::mutant(3) + j][swara::mutant(4) + k];");
        let (_, text) = planted("const T* x; load(v, x + i); sum += a * b;");
        assert_eq!(text, "const T* x; load(v, x + swara::mutant(1) + i); sum += swara::narrow(2) || a * b;");
        let (_, text) = planted("((float2*)y)[i] = min(n, 4);");
        assert_eq!(text, "((float2*)y)[swara::mutant(1) + i] = min(swara::mutant(2) + n, 4);");
        let (sites, text) = planted("sum = __fmaf_rn(f(a, b), c, sum);");
        assert_eq!((sites, text.as_str()), (vec![(Kind::Accumulator, 7)], "sum = __fmaf_rn(f(a, b), c, swara::narrow(1) || sum);"));
        let (_, text) = planted("multiply_accumulate(sum[i], fa, fb, T());");
        assert_eq!(text, "swara::narrow_each(1, sum[i]), multiply_accumulate(sum[swara::mutant(2) + i], fa, fb, T());");
    }

    #[test]
    fn what_is_no_expression_at_run_time_is_left_alone() {
        for text in [
            "float v[4], w[N];",
            "__shared__ __align__(16) float tile[32][33];",
            "float (&v)[4]",
            "float (*tile)[PITCH]",
            "void multiply_accumulate(float (&d)[4], int n)",
            "fmaf(u, v, 2.5f);",
            "f(unsigned (&b)[2][2], int n)",
            "if constexpr (N == 1) f();",
            "static_assert(a < b, c);",
            "template <int N = (A < B)>",
            "constexpr int x = a < b;",
            "// a < b",
            "auto f = [&](int i) { return i; };",
            "p == nullptr;",
            "x = y << 3;",
            "f<T>(x);",
            "#if ARCH >= 80\n#endif",
            "#ifdef SWARA_EMULATOR\na < b;\n#else\nx[3];\n#endif",
            "float v[4] = {}, other[4];",
            "void grid_barrier(unsigned* state) {}",
        ] {
            assert_eq!(planted(text), (Vec::new(), text.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_site_knows_the_file_it_came_from() {
        let (sites, _) = plant("#line 1 \"a.cu\"\n#line 1 \"b.cuh\"\nint f();\n  x[1];\n#line 2 \"a.cu\"\ny[2];\n", 5);
        let places: Vec<_> = sites.iter().map(|s| (s.file.as_str(), s.line, s.column, s.text.as_str())).collect();
        assert_eq!(places, [("b.cuh", 2, 4, "x[1];"), ("a.cu", 2, 2, "y[2];")]);
    }
}
