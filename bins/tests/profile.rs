//! `swara profile`: timelines that hold together, ranges that a tool gets, command lines that are run as printed.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Room, model};
use serde_json::Value;

/// One complete event of a timeline, in nanoseconds.
struct Event {
    name: String,
    category: String,
    begin: i64,
    end: i64,
}

/// The events of each row, and the row's name; whatever is wrong with the file fails.
fn events(path: &Path) -> BTreeMap<String, Vec<Event>> {
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (mut names, mut rows) = (BTreeMap::new(), BTreeMap::<u64, Vec<Event>>::new());
    for event in file["traceEvents"].as_array().unwrap() {
        let row = event["tid"].as_u64().unwrap();
        assert_eq!(event["pid"], 1);
        match event["ph"].as_str().unwrap() {
            "M" if event["name"] == "thread_name" => drop(names.insert(row, event["args"]["name"].as_str().unwrap().to_owned())),
            "M" => assert_eq!(event["name"], "process_name"),
            "X" => {
                let ns = |key: &str| (event[key].as_f64().unwrap() * 1e3).round() as i64;
                let (name, category) = (event["name"].as_str().unwrap().to_owned(), event["cat"].as_str().unwrap().to_owned());
                assert!(ns("ts") >= 0 && ns("dur") >= 0 && !name.is_empty(), "{event}");
                rows.entry(row).or_default().push(Event { name, category, begin: ns("ts"), end: ns("ts") + ns("dur") });
            }
            other => panic!("a phase {other}"),
        }
    }
    rows.into_iter().map(|(row, events)| (names[&row].clone(), events)).collect()
}

/// Names from the outermost to each event, which must lie inside of all it is under.
fn paths(events: &[Event]) -> Vec<String> {
    let (mut open, mut paths): (Vec<&Event>, Vec<String>) = (Vec::new(), Vec::new());
    for event in events {
        while open.last().is_some_and(|outer| outer.end <= event.begin && !(outer.begin == event.begin && outer.end >= event.end)) {
            open.pop();
        }
        if let Some(outer) = open.last() {
            assert!(outer.begin <= event.begin && event.end <= outer.end, "{} sticks out of {}", event.name, outer.name);
        }
        open.push(event);
        paths.push(open.iter().map(|event| event.name.as_str()).collect::<Vec<_>>().join("/"));
    }
    paths
}

#[test]
fn a_timeline_of_frames_nests_step_layer_and_operation() {
    let room = Room::new();
    model(&room);
    let args = ["profile", "codec", "--model", "tiny.safetensors", "--device", "cpu", "--trace", "t.json", "--frames", "3", "--json"];
    let said = room.json(&args);
    assert_eq!((&said["runs"], &said["launches"], &said["dropped"]), (&3.into(), &0.into(), &0.into()));
    let rows = events(&room.path("t.json"));
    let host = &rows["host"];
    assert_eq!((rows.len(), host.len() as u64), (1, said["spans"].as_u64().unwrap()));
    let paths = paths(host);
    for frame in 0..3 {
        for path in [
            format!("frame {frame}/encode/encoder.conv1/conv1d.step"),
            format!("frame {frame}/encode/quantizer/rvq_search.search"),
            format!("frame {frame}/decode/decoder.block.0.conv_t1/conv_transpose1d.step"),
        ] {
            assert_eq!(paths.iter().filter(|p| **p == path).count(), 1, "{path} in {paths:#?}");
        }
    }
    assert!(host.iter().all(|event| ["step", "layer", "op"].contains(&event.category.as_str())));
}

#[test]
fn a_timeline_of_the_emulator_has_every_launch_on_a_row_of_its_own() {
    let room = Room::new();
    model(&room);
    let args = ["profile", "codec", "--model", "tiny.safetensors", "--device", "emulator", "--trace", "t.json", "--frames", "2"];
    let output = room.swara(args);
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("compiler") && !output.status.success() {
        return println!("skipped: {error}");
    }
    assert!(output.status.success(), "{error}");
    let rows = events(&room.path("t.json"));
    let device = &rows["device"];
    paths(&rows["host"]);
    assert!(device.len() > 20 && device.iter().any(|launch| launch.name == "rvq_search_f32"));
    assert!(device.windows(2).all(|pair| pair[0].end <= pair[1].begin), "launches of one stream overlap");
    // The host queued each inside of the operation that it belongs to; the emulator runs it there and then.
    let ops: Vec<&Event> = rows["host"].iter().filter(|event| event.category == "op").collect();
    let slack = 100_000; // the two clocks are set to each other once
    let inside = |launch: &Event| ops.iter().any(|op| op.begin <= launch.begin + slack && launch.end <= op.end + slack);
    assert!(device.iter().all(inside));
}

/// An NVTX tool that writes down the ranges it gets.
const TOOL: &str = r#"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef void (*function)(void);
typedef struct { size_t size; int (*module)(int, function ***, unsigned *); } callbacks;
static FILE *out;
static int depth;
static int push(const char *name) { fprintf(out, "%d %s\n", depth, name); fflush(out); return depth++; }
static int pop(void) { if (depth == 0) { fprintf(out, "unbalanced\n"); fflush(out); } return --depth; }
static void done(void) { fprintf(out, "end %d\n", depth); fclose(out); }
#ifndef NOT_A_TOOL
int InitializeInjectionNvtx2(const void *(*get)(uint32_t)) {
    const char *mode = getenv("TOOL");
    function **table = NULL;
    unsigned size = 0;
    const callbacks *etbl = get(1);
    if (!etbl || etbl->size < sizeof *etbl || !etbl->module(1, &table, &size) || size < 12) return 0;
    if (!strcmp(mode, "idle")) return 1;
    *table[9] = (function)push;
    *table[11] = (function)pop;
    if (!strcmp(mode, "refuses")) return 0;
    if (!(out = fopen("ranges.txt", "w"))) return 0;
    atexit(done);
    return 1;
}
#endif
"#;

fn compile(room: &Room, name: &str, flag: &str) -> Option<PathBuf> {
    let source = room.write("tool.c", TOOL.as_bytes());
    let library = room.path(name);
    let made = Command::new("cc").args(["-shared", "-fPIC", flag, "-o"]).arg(&library).arg(source).status();
    made.is_ok_and(|status| status.success()).then_some(library)
}

fn under(room: &Room, library: &Path, mode: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_swara"))
        .args(["profile", "codec", "--model", "tiny.safetensors", "--device", "cpu", "--run", "bare", "--frames", "2"])
        .current_dir(room.path("."))
        .env("NVTX_INJECTION64_PATH", library)
        .env("TOOL", mode)
        .output()
        .unwrap()
}

#[test]
fn an_nvtx_tool_gets_balanced_ranges_named_as_in_the_timeline() {
    let room = Room::new();
    model(&room);
    let Some(library) = compile(&room, "tool.so", "-DTOOL") else {
        return println!("skipped: no C compiler to make a tool with; install cc");
    };
    let output = under(&room, &library, "records");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(room.path("ranges.txt")).unwrap();
    for line in ["0 frame 1", "1 encode", "2 encoder.conv1", "3 conv1d.step", "2 quantizer", "3 rvq_search.search", "1 decode", "end 0"] {
        assert!(text.lines().any(|l| l == line), "no {line:?} in {text}");
    }
    assert!(!text.contains("unbalanced"));
}

#[test]
fn a_tool_that_is_none_changes_nothing() {
    let room = Room::new();
    model(&room);
    let mut tools = vec![
        (PathBuf::from("/nonexistent/tool.so"), "records"),
        (room.write("text.so", b"no library"), "records"),
        (room.path("."), "records"),
        (PathBuf::from("a\nb"), "records"),
        (PathBuf::new(), "records"),
    ];
    match (compile(&room, "tool.so", "-DTOOL"), compile(&room, "none.so", "-DNOT_A_TOOL")) {
        (Some(tool), Some(none)) => tools.extend([(tool.clone(), "refuses"), (tool, "idle"), (none, "records")]),
        _ => println!("skipped in part: no C compiler to make a tool with; install cc"),
    }
    for (library, mode) in tools {
        let output = under(&room, &library, mode);
        assert!(output.status.success(), "{library:?} {mode}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "2 runs\n", "{library:?} {mode}");
        assert!(!room.path("ranges.txt").exists());
    }
}

/// A folder with a program called `name` that writes down its arguments and runs the one that follows `--`-options.
fn fake_tool(room: &Room, name: &str, status: i32) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let folder = room.path("tools");
    std::fs::create_dir_all(&folder).unwrap();
    let script = format!("#!/bin/sh\nprintf '%s\\0' \"$@\" > arguments\nexit {status}\n");
    std::fs::write(folder.join(name), script).unwrap();
    std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn with_path(room: &Room, path: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_swara")).args(args).current_dir(room.path(".")).env("PATH", path).output().unwrap()
}

#[test]
fn what_is_run_is_what_is_printed() {
    let room = Room::new();
    for (tool, first) in [("ncu", "--profile-from-start=off"), ("nsys", "profile")] {
        let folder = fake_tool(&room, tool, 0);
        let case = "$(touch owned) 'x' [1, 31]";
        let output = with_path(&room, &folder, &["profile", "snake", "--run", tool, "--case", case, "--output=-o\u{e9}", "--dtype", "f16"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let given = std::fs::read_to_string(room.path("arguments")).unwrap();
        let given: Vec<&str> = given.split_terminator('\0').collect();
        let printed = room.json(&["profile", "snake", "--case", case, "--output=-o\u{e9}", "--dtype", "f16", "--json"]);
        let printed: Vec<&str> = printed[tool].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        assert_eq!((printed[0], &printed[1..]), (tool, &given[..]));
        assert_eq!(given[0], first);
        assert!(given.contains(&format!("--case={case}").as_str()) && given.contains(&"--dtype=f16") && given.contains(&"--device=cuda"));
        assert_eq!(given.contains(&"--kernel-name=regex:^(snake_backward_bf16|snake_backward_f16|snake_backward_f32|snake_bf16|snake_f16|snake_f32|snake_reduce)$"), tool == "ncu");
        assert!(!room.path("owned").exists());
    }
}

#[test]
fn the_command_inside_is_one_that_works() {
    let room = Room::new();
    model(&room);
    let printed = room.json(&["profile", "codec", "--model", "tiny.safetensors", "--frames", "2", "--threads", "1", "--json"]);
    for tool in ["ncu", "nsys"] {
        let argv: Vec<&str> = printed[tool].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        let inner = argv.iter().position(|a| *a == env!("CARGO_BIN_EXE_swara")).unwrap() + 1;
        let args: Vec<String> = argv[inner..].iter().map(|a| a.replace("--device=cuda", "--device=cpu")).collect();
        assert_eq!(String::from_utf8(room.swara(&args).stdout).unwrap(), "2 runs\n", "{args:?}");
    }
}

#[test]
fn operations_run_bare_on_the_emulator_in_a_window() {
    let output = Room::new().swara([
        "profile",
        "reduce",
        "--run",
        "bare",
        "--device",
        "emulator",
        "--case",
        "sum_rows [",
        "--dtype",
        "f32",
        "--repeat",
        "3",
        "--json",
    ]);
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("compiler") && !output.status.success() {
        return println!("skipped: {error}");
    }
    let runs = serde_json::from_slice::<Value>(&output.stdout).unwrap()["runs"].as_u64().unwrap();
    assert!(runs >= 3 && runs.is_multiple_of(3), "{runs}: {error}");
}

#[test]
fn a_tool_that_is_missing_or_fails_is_one_line_and_a_hint() {
    let room = Room::new();
    for tool in ["ncu", "nsys"] {
        let found =
            ["/usr/local/cuda/bin", "/opt/nvidia/nsight-compute", "/opt/nvidia/nsight-systems"].iter().any(|dir| Path::new(dir).exists());
        let empty = room.path("none");
        std::fs::create_dir_all(&empty).unwrap();
        let output = with_path(&room, &empty, &["profile", "snake", "--run", tool]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            found || (output.status.code() == Some(1) && error.starts_with(&format!("error: profile: {tool} is not on the PATH"))),
            "{error}"
        );
        let output = with_path(&room, &fake_tool(&room, tool, 9), &["-q", "profile", "snake", "--run", tool]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(1) && error.starts_with(&format!("error: profile: {tool} ended with exit status: 9")),
            "{error}"
        );
    }
}

#[test]
fn what_cannot_be_profiled_is_bad_usage() {
    let room = Room::new();
    model(&room);
    for (args, says) in [
        (&["profile"][..], "required"),
        (&["profile", "nothing"], "nothing is called"),
        (&["profile", "snake\u{1b}[2J"], "nothing is called"),
        (&["profile", "codec", "snake"], "alone"),
        (&["profile", "codec", "--static"], "operations"),
        (&["profile", "codec", "--case", "x"], "--case"),
        (&["profile", "snake", "--model", "tiny.safetensors"], "--model"),
        (&["profile", "snake", "--frames", "0"], "--frames"),
        (&["profile", "snake", "--frames", "100001"], "--frames"),
        (&["profile", "snake", "--run", "gdb"], "gdb"),
        (&["profile", "snake", "--run", "ncu", "--trace", "t.json"], "--trace"),
        (&["profile", "snake", "--static", "--trace", "t.json"], "--trace"),
        (&["profile", "snake", "--arch", "sm_80"], "--static"),
        (&["profile", "snake", "--run", "ncu", "--device", "emulator"], "watch a GPU"),
        (&["profile", "snake", "--device", "cpu"], "watch a GPU"),
        (&["profile", "snake", "--run", "bare", "--device", "cpu", "--case", "no such case"], "no case"),
        (&["profile", "snake", "--run", "bare", "--device", "cpu", "--dtype", "bf16"], "no case"),
    ] {
        room.refuses(args, 2, says);
    }
    for arch in ["", "sm_", "sm_90aa", "sm_70", "90", "sm_99999999999", "sm_-1", "../x", "sm_9\n0"] {
        room.refuses(&["profile", "snake", "--static", &format!("--arch={arch}")], 2, "--arch");
    }
    let cpu =
        |trace: &'static str| ["profile", "codec", "--model", "tiny.safetensors", "--device", "cpu", "--frames", "1", "--trace", trace];
    room.refuses(&cpu("no/such/folder/t.json"), 1, "t.json");
    room.refuses(&cpu("."), 1, "(.)");
    room.refuses(&["profile", "codec", "--model", "none.safetensors", "--device", "cpu", "--trace", "t.json"], 1, "none.safetensors");
}

#[test]
fn the_compiler_says_what_a_kernel_is_made_of() {
    let room = Room::new();
    let output = room.swara(["profile", "--static", "reduce", "--arch", "sm_80", "--json"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if error.contains("NVRTC") {
        return println!("skipped: {error}");
    }
    assert!(output.status.success(), "{error}");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kernels = said["kernels"].as_array().unwrap();
    assert_eq!((said["arch"].as_str().unwrap(), kernels.len()), ("sm_80", 7));
    for kernel in kernels {
        assert!(kernel["registers"].as_u64().unwrap() >= 8 && kernel["spilled"] == 0 && kernel["stack"] == 0, "{kernel}");
        let launches = kernel["launches"].as_array().unwrap();
        assert!(!launches.is_empty() && launches.iter().all(|l| (0.01..=1.0).contains(&l["occupancy"].as_f64().unwrap())), "{kernel}");
        if kernel["mix"].is_null() {
            println!("skipped in part: {error}");
            continue;
        }
        let instructions: u64 = kernel["mix"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        let bytes = kernel["code"].as_u64().unwrap();
        assert!(
            instructions > 10 && 16 * instructions <= bytes && kernel["mix"].get("ldg 16").is_some() == (kernel["kernel"] != "finish_sum"),
            "{kernel}"
        );
    }
}

#[test]
fn without_a_compiler_the_report_is_an_error_with_a_hint() {
    let room = Room::new();
    let with = |variable: &str, value: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_swara")).args(["profile", "--static", "reduce"]).env(variable, value).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, error) = with("SWARA_NVRTC", "/nonexistent/libnvrtc.so");
    assert!(status == Some(1) && error.starts_with("error: ") && error.contains("pip install") && error.lines().count() == 2, "{error}");
    let (status, error) = with("SWARA_NVDISASM", room.path("nvdisasm").to_str().unwrap());
    assert!(status == Some(1) && error.lines().count() <= 2 && error.starts_with("error: "), "{error}");
}
