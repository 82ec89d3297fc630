//! `__shared__ float tile[8][33];` becomes a lookup in the running block's shared memory: the one thing in CUDA text that
//! neither a macro nor a C++ compiler can express, since every block of a cooperative launch has its own.

/// Rewrites every declaration; line numbers stay. `extern __shared__` is left alone (`DYNAMIC_SHARED` hides it).
pub(super) fn rewrite(text: &str) -> String {
    const KEYWORD: &str = "__shared__";
    let code = blank_comments(text);
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    while let Some(at) = code[done..].find(KEYWORD).map(|i| done + i) {
        let after = at + KEYWORD.len();
        let (head, prefix) = split_specifiers(&text[done..at]);
        let statement_end = code[after..].find(';').map(|i| after + i);
        let word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            || code[after..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
        match statement_end {
            Some(end) if !word && !prefix.contains("extern") => {
                out.push_str(head);
                out.push_str(&declaration(prefix, &text[after..end]));
                done = end + 1;
            }
            _ => {
                out.push_str(&text[done..after]);
                done = after;
            }
        }
    }
    out.push_str(&text[done..]);
    out
}

/// Same length, comments and strings blanked out.
fn blank_comments(text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    let mut i = 0;
    while i < out.len() {
        let rest = &text.as_bytes()[i..];
        let length = match rest {
            [b'/', b'/', ..] => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => rest.windows(2).skip(2).position(|w| w == b"*/").map_or(rest.len(), |p| p + 4),
            [b'"', ..] => {
                let mut n = 1;
                while n < rest.len() && rest[n] != b'"' && rest[n] != b'\n' {
                    n += 1 + (rest[n] == b'\\') as usize;
                }
                (n + 1).min(rest.len())
            }
            _ => {
                i += 1;
                continue;
            }
        };
        for byte in &mut out[i..i + length] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        i += length;
    }
    // Only whole characters inside comments and strings were replaced, byte by byte.
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

/// Splits trailing `static`, `extern`, `volatile`, `alignas(...)` off what stands before the keyword.
fn split_specifiers(before: &str) -> (&str, &str) {
    let mut start = before.len();
    loop {
        let head = before[..start].trim_end();
        let word = ["static", "extern", "volatile"].iter().find(|w| head.ends_with(**w)).map(|w| head.len() - w.len());
        let align = head.ends_with(')').then(|| head.rfind("alignas(").or(head.rfind("__align__("))).flatten();
        let align = align.filter(|&a| !head[a..head.len() - 1].contains(')'));
        match word.or(align) {
            Some(at) => start = at,
            None => return before.split_at(start),
        }
    }
}

/// Everything between specifiers and `;` as lookups, one a variable.
fn declaration(prefix: &str, body: &str) -> String {
    let mut align = "1".to_owned();
    let mut take_alignment = |text: &str| {
        let mut text = text.to_owned();
        for word in ["alignas(", "__align__("] {
            while let Some(at) = text.find(word) {
                let Some(close) = text[at..].find(')').map(|c| at + c) else { break };
                align = text[at + word.len()..close].to_owned();
                text.replace_range(at..=close, " ");
            }
        }
        text
    };
    let volatile = if take_alignment(prefix).contains("volatile") { "volatile " } else { "" };
    let body = take_alignment(body);
    let lines = body.matches('\n').count() + prefix.matches('\n').count();
    let mut declarators = top_level(&body, ',').into_iter().map(|d| d.split_whitespace().collect::<Vec<_>>().join(" "));
    let first = declarators.next().unwrap_or_default();
    // The name is the last identifier before the extents.
    let extents = first.find('[').unwrap_or(first.len());
    let stem = first[..extents].trim_end();
    let name_at = stem.rfind(|c: char| !(c.is_alphanumeric() || c == '_' || c == '#')).map_or(0, |i| i + 1);
    let kind = stem[..name_at].trim_end();
    let mut out = String::new();
    for declarator in std::iter::once(first[name_at..].to_owned()).chain(declarators) {
        let (name, extents) = declarator.split_at(declarator.find('[').unwrap_or(declarator.len()));
        let name = name.trim();
        out.push_str(&format!(
            "typedef {volatile}{kind} {name}_shared_type{extents}; static char {name}_shared_site; {name}_shared_type& {name} = \
             *({name}_shared_type*)swara::runtime->shared(swara::current, &{name}_shared_site, \"{name}\", sizeof({name}_shared_type), \
             {align} > alignof({name}_shared_type) ? {align} : alignof({name}_shared_type)); "
        ));
    }
    out.push_str(&"\n".repeat(lines));
    out
}

/// Splits at `separator` outside all brackets.
fn top_level(text: &str, separator: char) -> Vec<&str> {
    let mut depth = 0i32;
    let mut parts = Vec::new();
    let mut start = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' | '>' => depth -= 1,
            _ if c == separator && depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn a_declaration_becomes_a_lookup_and_keeps_its_lines() {
        let text = rewrite("int a;\n  __shared__ float tile[8][PAD + 1],\n      sums[32];\nint b;");
        assert!(text.contains("typedef float tile_shared_type[8][PAD + 1];"), "{text}");
        assert!(text.contains("typedef float sums_shared_type[32];"), "{text}");
        assert_eq!(text.lines().count(), 4);
        assert!(text.starts_with("int a;\n") && text.ends_with("int b;"));
    }

    #[test]
    fn templates_alignment_and_qualifiers_are_understood() {
        let text = rewrite("alignas(16) __shared__ Tile<T, 4> tile;");
        assert!(text.contains("typedef Tile<T, 4> tile_shared_type;") && text.contains("16 > alignof"), "{text}");
        let text = rewrite("volatile __shared__ __align__(32) unsigned flag;");
        assert!(text.contains("typedef volatile unsigned flag_shared_type;") && text.contains("32 > alignof"), "{text}");
        let text = rewrite("static __shared__ typename Core<T>::Storage s;");
        assert!(text.starts_with("typedef typename Core<T>::Storage s_shared_type;"), "{text}");
    }

    #[test]
    fn comments_strings_and_extern_are_left_alone() {
        for text in [
            "// __shared__ float a[3];\n",
            "/* __shared__ x; */",
            "f(\"__shared__ int x;\");",
            "extern __shared__ int x[];",
            "my__shared__x y;",
        ] {
            assert_eq!(rewrite(text), text);
        }
    }
}
