//! Every way to end has its exit code and its last words.

use collect_api::protocol::{CommitWork, HookEvent, HookWork, PlanWork, Work, WorkResult, exit};
use collect_registry::{Effect, Options, Registry, When};
use serde_json::json;

use crate::lab::{Lab, pages};

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_is_collected() {
    let lab = Lab::small().await;
    let ended = lab.run(&lab.collect(json!({"pagination": pages(50)}), None), "aaaaaaaa-1").await;
    assert_eq!(ended.code, exit::DONE, "{ended:?}");
    let Some(WorkResult::Collect(result)) = ended.message.result else { panic!("{ended:?}") };
    assert_eq!((result.tally.records, result.tally.source, lab.codes()), (216, 216, lab.held()));
    let usage = ended.message.usage;
    assert!(usage.peak_memory_bytes > 1 << 20 && usage.requests == 5, "{usage:?}");
    assert_eq!((usage.records, usage.bytes), (216, result.tally.bytes));
    assert!(ended.logs.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{}", ended.logs);
    assert!(ended.logs.contains("0123456789abcdef0123456789abcdef"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_leaves_a_checkpoint_that_the_next_attempt_goes_on_from() {
    let slow = Effect::Delay { milliseconds: 20 };
    let lab = Lab::with(Registry::small(), Options::faults([slow.always()])).await;
    let source = json!({"pagination": pages(10)});
    let worker = lab.start(&lab.collect(source.clone(), None), "aaaaaaaa-1");
    // 22 pages: at about 90 %.
    lab.until_requests(20).await;
    worker.terminate();
    let ended = worker.end().await;
    assert_eq!((ended.code, &ended.message.error), (exit::CHECKPOINTED, &None), "{ended:?}");
    let checkpoint = ended.message.checkpoint.unwrap();
    assert!(checkpoint.tally.records >= 190);

    let before = lab.requests();
    let mut second = lab.collect(source, Some(checkpoint.clone()));
    second.attempt = 2;
    let ended = lab.run(&second, "bbbbbbbb-2").await;
    assert_eq!((ended.code, lab.codes()), (exit::DONE, lab.held()), "{ended:?}");
    let Some(WorkResult::Collect(result)) = ended.message.result else { panic!("{ended:?}") };
    let left = (216 - checkpoint.tally.records, result.tally.bytes - checkpoint.tally.bytes);
    assert_eq!((ended.message.usage.records, ended.message.usage.bytes), left);
    let after = lab.requests().split_off(before.len());
    assert!(after.len() <= 3 && after.iter().filter(|query| before.contains(query)).count() <= 1, "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_racing_workers_one_commits_and_the_other_says_so() {
    let lab = Lab::small().await;
    let assignment = lab.collect(json!({"pagination": pages(10)}), None);
    let (first, second) = (lab.start(&assignment, "aaaaaaaa-1"), lab.start(&assignment, "bbbbbbbb-2"));
    let (first, second) = tokio::join!(first.end(), second.end());
    let mut codes = [first.code, second.code];
    codes.sort_unstable();
    assert_eq!(codes, [exit::DONE, exit::ALREADY_COMMITTED], "{first:?} {second:?}");
    assert_eq!(first.message.result, second.message.result);
    assert_eq!(lab.codes(), lab.held());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_code_of_their_class() {
    let status = |code, retry_after_seconds| Effect::Status { code, retry_after_seconds };
    for (effect, code, reason, retry_after_ms) in [
        (status(503, None), exit::RETRYABLE, "SourceUnavailable", None),
        (status(404, None), exit::PERMANENT, "SourceNotFound", None),
        (status(429, Some(120)), exit::SOURCE_LIMITED, "SourceLimited", Some(120_000)),
    ] {
        let lab = Lab::with(Registry::small(), Options::faults([effect.always()])).await;
        let ended = lab.run(&lab.collect(json!({}), None), "aaaaaaaa-1").await;
        let error = ended.message.error.clone().unwrap();
        assert_eq!(
            (ended.code, error.reason.as_str(), error.retry_after_ms),
            (code, reason, retry_after_ms),
            "{ended:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_after_a_checkpoint_hands_it_over() {
    let down = Effect::Status { code: 503, retry_after_seconds: None }.when(When { skip: 10, ..When::default() });
    let lab = Lab::with(Registry::small(), Options::faults([down])).await;
    let ended = lab.run(&lab.collect(json!({"pagination": pages(10)}), None), "aaaaaaaa-1").await;
    assert_eq!(ended.code, exit::RETRYABLE);
    assert_eq!(ended.message.checkpoint.unwrap().tally.records, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_show_nowhere() {
    let lab = Lab::with(Registry::small(), Options { token: Some("other".into()), ..Options::default() }).await;
    let auth = json!({"bearer": {"secretRef": {"name": "registry", "key": "token"}}});
    let ended = lab.run(&lab.collect(json!({"auth": auth}), None), "aaaaaaaa-1").await;
    assert_eq!(
        (ended.code, ended.message.error.as_ref().unwrap().reason.as_str()),
        (exit::PERMANENT, "SourceUnauthorized")
    );
    assert!(!format!("{ended:?}").contains("tok-s3cret"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_that_can_not_be_read_is_permanent() {
    let lab = Lab::small().await;
    let mut text = serde_json::to_value(lab.collect(json!({}), None)).unwrap();
    text["work"] = json!({"dance": {}});
    let termination = lab.dir.path().join("t");
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_collect-worker"))
        .env_clear()
        .env("COLLECT_ASSIGNMENT", text.to_string())
        .env("COLLECT_TERMINATION_LOG", &termination)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(exit::PERMANENT));
    assert!(std::fs::read_to_string(termination).unwrap().contains("AssignmentInvalid"));
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_collect_and_commit_make_a_valid_run() {
    let lab = Lab::small().await;
    let source = json!({"pagination": pages(50)});
    let plan = Work::Plan(PlanWork { decompose: Default::default(), total: None });
    let ended = lab.run(&lab.assignment(source.clone(), plan), "aaaaaaaa-1").await;
    let Some(WorkResult::Plan(plan)) = &ended.message.result else { panic!("{ended:?}") };
    assert_eq!((ended.code, plan.shards, plan.records), (exit::DONE, 1, Some(216)));
    assert_eq!(lab.run(&lab.collect(source.clone(), None), "bbbbbbbb-1").await.code, exit::DONE);
    let commit = Work::Commit(CommitWork { slices: 1, records: 216, keep_runs: 2, revision: 0 });
    let ended = lab.run(&lab.assignment(source.clone(), commit), "cccccccc-1").await;
    assert!(matches!(&ended.message.result, Some(WorkResult::Commit(result)) if result.records == 216), "{ended:?}");
    let current = std::fs::read_to_string(lab.dir.path().join("volume/villages/_current.json")).unwrap();
    assert!(current.contains("\"run\":1"), "{current}");
    let commit = Work::Commit(CommitWork { slices: 2, records: 216, keep_runs: 2, revision: 0 });
    let ended = lab.run(&lab.assignment(source, commit), "dddddddd-1").await;
    assert_eq!((ended.code, ended.message.error.unwrap().reason.as_str()), (exit::PERMANENT, "ManifestMismatch"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_ends_with_the_code_of_its_answer() {
    let gone = Effect::Status { code: 404, retry_after_seconds: None };
    for (faults, code) in [(vec![], exit::DONE), (vec![gone.always()], exit::PERMANENT)] {
        let lab = Lab::with(Registry::small(), Options::faults(faults)).await;
        let http = json!({"url": format!("{}/api/hooks/done", lab.registry.url())});
        let event = HookEvent { hook: "beforeStart".into(), run: 1, phase: "Pending".into(), ..HookEvent::default() };
        let work = Work::Hook(HookWork { http: serde_json::from_value(http).unwrap(), event: event.clone() });
        let ended = lab.run(&lab.assignment(json!({}), work), "aaaaaaaa-1").await;
        assert_eq!(ended.code, code, "{ended:?}");
        match (ended.message.result, ended.message.error) {
            (Some(WorkResult::Hook(result)), None) => assert_eq!((code, result.code), (exit::DONE, 204)),
            (None, Some(error)) => assert_eq!((code, error.reason.as_str()), (exit::PERMANENT, "HookNotFound")),
            other => panic!("{other:?}"),
        }
        let log = lab.registry.log();
        assert_eq!((log.len(), serde_json::from_str::<HookEvent>(&log[0].body).unwrap()), (1, event));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_is_stopped_leaves_and_begins_anew() {
    let lab = Lab::with(Registry::small(), Options::faults([Effect::Stuck.always()])).await;
    let http = json!({"url": format!("{}/api/hooks/done", lab.registry.url())});
    let work = HookWork { http: serde_json::from_value(http).unwrap(), event: HookEvent::default() };
    let worker = lab.start(&lab.assignment(json!({}), Work::Hook(work)), "aaaaaaaa-1");
    lab.until_requests(1).await;
    worker.terminate();
    let ended = worker.end().await;
    assert_eq!((ended.code, ended.message.result), (exit::CHECKPOINTED, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_shows_people_what_would_happen() {
    let options = Options { token: Some("tok-s3cret".into()), ..Options::default() };
    let lab = Lab::with(Registry::small(), options).await;
    let task = format!(
        "apiVersion: collect.dev/v1alpha1\nkind: CollectTask\nmetadata: {{name: villages}}\nspec:\n  source:\n    http:\n      \
         url: {}/api\n      path: \"/cities/{{{{ city }}}}/villages\"\n      records: $.data\n      total: $.total\n      \
         pagination: {{page: {{param: page, size: 10, sizeParam: size}}}}\n      auth: {{bearer: {{secretRef: {{name: registry, key: token}}}}}}\n  \
         record: {{key: [code]}}\n  sink: {{objectStore: {{url: \"s3://lake/villages\"}}}}\n  decompose:\n    levels:\n      \
         - {{name: province, discover: {{path: /provinces, value: $.code}}}}\n      \
         - {{name: city, discover: {{path: \"/provinces/{{{{ province }}}}/cities\", value: $.code}}}}\n",
        lab.registry.url()
    );
    let file = lab.dir.path().join("task.yaml");
    std::fs::write(&file, task).unwrap();
    let run = |arguments: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_collect-worker"))
            .args(["preview", "-f", file.to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap()
    };
    let secrets = lab.dir.path().join("secrets");
    let output = run(&["--value", "province=44", "--secrets-dir", secrets.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for wanted in [
        "/api/cities/44",
        "authorization: Bearer ***",
        "status 200",
        "\"code\":\"44",
        "string",
        "province=44 / city=44",
    ] {
        assert!(text.contains(wanted), "no {wanted} in\n{text}");
    }
    assert!(!text.contains("tok-s3cret"));
    let output = run(&["--secrets-dir", "/nowhere"]);
    assert_eq!(output.status.code(), Some(exit::PERMANENT));
    assert!(String::from_utf8_lossy(&output.stderr).contains("secret `registry` has no key `token`"));
}
