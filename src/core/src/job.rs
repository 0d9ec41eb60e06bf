//! The Job of an attempt. What a user may say about the pod is an allow-list, and what keeps the pod harmless is set last.

use std::{collections::BTreeMap, time::Duration};

use collect_api::{
    CollectTaskSpec,
    hooks::JobHook,
    labels,
    protocol::{ASSIGNMENT_ENV, HookEvent, POD_UID_ENV, SECRETS_DIR, TOKEN_AUDIENCE, VOLUME_DIR},
    sink::Sink,
    source::{Auth, Source},
    worker::{ResourceAmounts, Worker},
};
use k8s_openapi::{
    api::{
        batch::v1::{
            Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
            PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
        },
        core::v1::{
            Capabilities, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, KeyToPath, ObjectFieldSelector,
            PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, ProjectedVolumeSource,
            ResourceRequirements, SeccompProfile, SecretProjection, SecretVolumeSource, SecurityContext,
            ServiceAccountTokenProjection, Toleration, Volume, VolumeMount, VolumeProjection,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

use crate::exit::RULE_EXIT_CODES;

/// Name of the worker's container.
pub const CONTAINER: &str = "worker";
/// Seconds that a worker has to leave a checkpoint.
pub const GRACE_SECONDS: i64 = 30;
/// Seconds after which a finished Job that nobody deleted is deleted by Kubernetes.
const TTL_SECONDS: i32 = 24 * 3600;
/// User and group of the worker's process.
const USER: i64 = 65532;

/// What the operator's configuration says about workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerDefaults {
    /// Image.
    pub image: String,
    /// Pull policy.
    pub pull_policy: String,
    /// Environment variables beside those that the protocol names. Whoever may read Jobs reads them: nothing secret.
    pub env: Vec<(String, String)>,
}

/// What the Job is for.
#[derive(Clone, Debug)]
pub struct JobFor<'a> {
    /// Name of the Job.
    pub name: String,
    /// Namespace.
    pub namespace: &'a str,
    /// Owner: the shard, or the root for planner and commit.
    pub owner: OwnerReference,
    /// `collect`, `plan`, `commit` or the word of a hook.
    pub work: &'static str,
    /// Name of the root task.
    pub root: &'a str,
    /// Uid of the root task.
    pub root_uid: &'a str,
    /// Name of the task that owns the work.
    pub task: &'a str,
    /// Run.
    pub run: i64,
    /// Attempt.
    pub attempt: i32,
    /// What the pod runs.
    pub runs: Runs<'a>,
    /// Time that the operator gives the attempt.
    pub deadline: Duration,
}

/// What a pod runs.
#[derive(Clone, Debug)]
pub enum Runs<'a> {
    /// A worker with its assignment, as the value of its environment variable. A hook's request brings its own credentials.
    Worker(String, Option<&'a Auth>),
    /// A container of the user's own that is told what happened.
    Own(&'a JobHook, &'a HookEvent),
}

/// Builds the Job.
pub fn build(job: &JobFor<'_>, spec: &CollectTaskSpec, defaults: &WorkerDefaults) -> Job {
    let labels = labels_of(job);
    let worker = spec.worker.clone().unwrap_or_default();
    // The operator keeps the deadline by its own clock and may be told another one while the attempt runs; this one is
    // for when there is no operator.
    let backstop = (job.deadline * 2).max(job.deadline + Duration::from_secs(600));
    Job {
        metadata: ObjectMeta {
            name: Some(job.name.clone()),
            namespace: Some(job.namespace.to_owned()),
            labels: Some(labels.clone()),
            owner_references: Some(vec![job.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            parallelism: Some(1),
            completions: Some(1),
            backoff_limit: Some(0),
            pod_replacement_policy: Some("Failed".into()),
            active_deadline_seconds: Some(i64::try_from(backstop.as_secs()).unwrap_or(i64::MAX).max(1)),
            ttl_seconds_after_finished: Some(TTL_SECONDS),
            pod_failure_policy: Some(failure_policy()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod(job, spec, worker, defaults)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

fn labels_of(job: &JobFor<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (labels::MANAGED_BY.into(), labels::OPERATOR.into()),
        (labels::WORK.into(), job.work.into()),
        (labels::ROOT.into(), job.root.into()),
        (labels::ROOT_UID.into(), job.root_uid.into()),
        (labels::TASK.into(), job.task.into()),
        (labels::RUN.into(), job.run.to_string()),
        (labels::ATTEMPT.into(), job.attempt.to_string()),
        (labels::LEDGER_UID.into(), job.owner.uid.clone()),
    ]);
    if job.owner.kind == "CollectShard" {
        labels.insert(labels::SHARD.into(), job.owner.name.clone());
    }
    labels
}

/// One rule for each exit class, so that the class survives in the Job's condition when the pod is gone.
fn failure_policy() -> PodFailurePolicy {
    let mut rules = vec![PodFailurePolicyRule {
        action: "FailJob".into(),
        on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
            type_: "DisruptionTarget".into(),
            status: Some("True".into()),
        }]),
        ..PodFailurePolicyRule::default()
    }];
    rules.extend(RULE_EXIT_CODES.iter().map(|code| PodFailurePolicyRule {
        action: "FailJob".into(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(CONTAINER.into()),
            operator: "In".into(),
            values: vec![*code],
        }),
        ..PodFailurePolicyRule::default()
    }));
    PodFailurePolicy { rules }
}

fn pod(job: &JobFor<'_>, spec: &CollectTaskSpec, worker: Worker, defaults: &WorkerDefaults) -> PodSpec {
    let (volumes, mounts) = volumes(job, spec);
    let (image, command, args, env) = match &job.runs {
        Runs::Worker(assignment, _) => {
            let image = worker.image.unwrap_or_else(|| defaults.image.clone());
            (image, None, None, worker_env(assignment, defaults))
        }
        Runs::Own(own, event) => {
            let some = |list: &[String]| Some(list.to_vec()).filter(|list| !list.is_empty());
            (own.image.clone(), some(&own.command), some(&own.args), own_env(own, event))
        }
    };
    PodSpec {
        restart_policy: Some("Never".into()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        service_account_name: worker.service_account_name,
        priority_class_name: worker.priority_class_name,
        node_selector: Some(worker.node_selector).filter(|selector| !selector.is_empty()),
        tolerations: Some(
            worker
                .tolerations
                .into_iter()
                .map(|t| Toleration {
                    key: t.key,
                    operator: t.operator,
                    value: t.value,
                    effect: t.effect,
                    ..Toleration::default()
                })
                .collect::<Vec<_>>(),
        )
        .filter(|tolerations| !tolerations.is_empty()),
        containers: vec![Container {
            name: CONTAINER.into(),
            image: Some(image),
            command,
            args,
            image_pull_policy: Some(defaults.pull_policy.clone()),
            env: Some(env),
            resources: Some(resources(worker.resources.as_ref())),
            volume_mounts: Some(mounts),
            termination_message_policy: Some("File".into()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                run_as_non_root: Some(true),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
                ..SecurityContext::default()
            }),
            ..Container::default()
        }],
        volumes: Some(volumes),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

fn env(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), ..EnvVar::default() }
}

fn worker_env(assignment: &str, defaults: &WorkerDefaults) -> Vec<EnvVar> {
    let uid = ObjectFieldSelector { field_path: "metadata.uid".into(), ..ObjectFieldSelector::default() };
    let own = [
        env(ASSIGNMENT_ENV, assignment),
        EnvVar {
            name: POD_UID_ENV.into(),
            value_from: Some(EnvVarSource { field_ref: Some(uid), ..EnvVarSource::default() }),
            ..EnvVar::default()
        },
        // Workers find what is mounted through these, so that a node without mount namespaces can serve them too.
        env("COLLECT_SECRETS_DIR", SECRETS_DIR),
        env("COLLECT_VOLUME_DIR", VOLUME_DIR),
    ];
    own.into_iter().chain(defaults.env.iter().map(|(name, value)| env(name, &value.replace("$(", "$$(")))).collect()
}

/// What the user says, and over it what happened: COLLECT_EVENT is the same as JSON.
fn own_env(own: &JobHook, event: &HookEvent) -> Vec<EnvVar> {
    let mut all = own.env.clone();
    let json = serde_json::to_string(event).unwrap_or_default();
    let run = event.run.to_string();
    for (name, value) in [
        ("COLLECT_HOOK", &event.hook),
        ("COLLECT_NAMESPACE", &event.namespace),
        ("COLLECT_TASK", &event.task),
        ("COLLECT_RUN", &run),
        ("COLLECT_PHASE", &event.phase),
        ("COLLECT_EVENT", &json),
    ] {
        all.insert(name.to_owned(), value.clone());
    }
    all.iter().map(|(name, value)| env(name, value)).collect()
}

fn resources(wanted: Option<&collect_api::worker::Resources>) -> ResourceRequirements {
    let amounts = |amounts: Option<&ResourceAmounts>, cpu: Option<&str>, memory: &str| {
        let cpu = amounts.and_then(|amounts| amounts.cpu.as_deref()).or(cpu);
        let memory = amounts.and_then(|amounts| amounts.memory.as_deref()).unwrap_or(memory);
        let mut map = BTreeMap::from([("memory".to_owned(), Quantity(memory.into()))]);
        if let Some(cpu) = cpu {
            map.insert("cpu".into(), Quantity(cpu.into()));
        }
        map
    };
    ResourceRequirements {
        requests: Some(amounts(wanted.and_then(|wanted| wanted.requests.as_ref()), Some("50m"), "64Mi")),
        limits: Some(amounts(wanted.and_then(|wanted| wanted.limits.as_ref()), None, "256Mi")),
        ..ResourceRequirements::default()
    }
}

/// What the pod may read and write, and nothing else.
fn volumes(job: &JobFor<'_>, spec: &CollectTaskSpec) -> (Vec<Volume>, Vec<VolumeMount>) {
    match &job.runs {
        Runs::Worker(_, Some(auth)) => worker_volumes(auth.secret_keys("auth"), None),
        Runs::Worker(_, None) if job.work == "collect" || job.work == "plan" || job.work == "commit" => {
            let http = spec.source.iter().flat_map(|Source::Http(http)| http.secret_keys());
            let store = spec.sink.iter().flat_map(|Sink::ObjectStore(store)| store.secret_keys());
            let claim = spec.sink.as_ref().and_then(|Sink::ObjectStore(store)| store.volume.as_ref());
            worker_volumes(http.chain(store).collect(), claim.map(|volume| volume.claim_name.clone()))
        }
        Runs::Worker(_, None) => worker_volumes(Vec::new(), None),
        Runs::Own(own, _) => own_volumes(own),
    }
}

/// A writable /tmp, and the Secret that is asked for, whole.
fn own_volumes(own: &JobHook) -> (Vec<Volume>, Vec<VolumeMount>) {
    let empty = EmptyDirVolumeSource::default();
    let mut volumes = vec![Volume { name: "tmp".into(), empty_dir: Some(empty), ..Volume::default() }];
    let mut mounts = vec![mount("tmp", "/tmp", false)];
    if let Some(secret) = &own.secret_ref {
        mounts.push(mount("secret", &format!("{SECRETS_DIR}/{}", secret.name), true));
        let source = SecretVolumeSource { secret_name: Some(secret.name.clone()), ..SecretVolumeSource::default() };
        volumes.push(Volume { name: "secret".into(), secret: Some(source), ..Volume::default() });
    }
    (volumes, mounts)
}

/// The token, exactly the keys that are needed of each secret, and the sink's claim.
fn worker_volumes(keys: Vec<(String, String, String)>, claim: Option<String>) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mut volumes = vec![Volume {
        name: "token".into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(TOKEN_AUDIENCE.into()),
                    expiration_seconds: Some(3600),
                    path: "token".into(),
                    ..ServiceAccountTokenProjection::default()
                }),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }];
    let mut mounts = vec![mount("token", "/var/run/collect/token", true)];
    let mut secrets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (secret, key, _) in keys {
        let keys = secrets.entry(secret).or_default();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    if !secrets.is_empty() {
        mounts.push(mount("secrets", SECRETS_DIR, true));
        let sources = secrets
            .into_iter()
            .map(|(secret, keys)| VolumeProjection {
                secret: Some(SecretProjection {
                    // Without it a missing key would leave the pod waiting; the worker can say which key is missing.
                    optional: Some(true),
                    items: Some(
                        keys.into_iter()
                            .map(|key| KeyToPath { path: format!("{secret}/{key}"), key, ..KeyToPath::default() })
                            .collect(),
                    ),
                    name: secret,
                }),
                ..VolumeProjection::default()
            })
            .collect();
        volumes.push(Volume {
            name: "secrets".into(),
            projected: Some(ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() }),
            ..Volume::default()
        });
    }
    if let Some(claim_name) = claim {
        mounts.push(mount("sink", VOLUME_DIR, false));
        let claim = PersistentVolumeClaimVolumeSource { claim_name, read_only: None };
        volumes.push(Volume { name: "sink".into(), persistent_volume_claim: Some(claim), ..Volume::default() });
    }
    (volumes, mounts)
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount { name: name.into(), mount_path: path.into(), read_only: Some(read_only), ..VolumeMount::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> CollectTaskSpec {
        serde_json::from_value(serde_json::json!({
            "source": {"http": {"url": "https://x.example", "auth": {"bearer": {"secretRef": {"name": "api", "key": "token"}}}}},
            "sink": {"objectStore": {"url": "s3://lake/x", "secretRef": {"name": "lake"}}},
            "record": {"key": ["id"]},
            "worker": {"resources": {"limits": {"memory": "512Mi"}}, "tolerations": [{"key": "spot", "operator": "Exists"}]},
        }))
        .unwrap()
    }

    fn job_for() -> JobFor<'static> {
        JobFor {
            name: "x-0-abcde-a1".into(),
            namespace: "ns",
            owner: OwnerReference {
                kind: "CollectShard".into(),
                name: "x-0".into(),
                uid: "u".into(),
                ..Default::default()
            },
            work: "collect",
            root: "x",
            root_uid: "r",
            task: "x",
            run: 1,
            attempt: 1,
            runs: Runs::Worker("{}".into(), None),
            deadline: Duration::from_secs(6 * 3600),
        }
    }

    fn defaults() -> WorkerDefaults {
        WorkerDefaults { image: "worker:1".into(), pull_policy: "IfNotPresent".into(), env: Vec::new() }
    }

    fn example() -> Job {
        build(&job_for(), &spec(), &defaults())
    }

    #[test]
    fn the_job_of_an_attempt() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&example()).unwrap());
    }

    #[test]
    fn a_worker_is_given_the_operators_variables_as_they_are() {
        let env = vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), "http://x/$(HOME)".to_owned())];
        let built = build(&job_for(), &spec(), &WorkerDefaults { env, ..defaults() });
        let container = built.spec.unwrap().template.spec.unwrap().containers.remove(0);
        let last = container.env.unwrap().pop().unwrap();
        assert_eq!(
            (last.name.as_str(), last.value.as_deref()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", Some("http://x/$$(HOME)"))
        );
    }

    #[test]
    fn the_pod_passes_the_restricted_standard() {
        let pod = example().spec.unwrap().template.spec.unwrap();
        let context = pod.security_context.unwrap();
        assert_eq!(context.run_as_non_root, Some(true));
        assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault");
        let container = pod.containers[0].security_context.clone().unwrap();
        assert_eq!(container.allow_privilege_escalation, Some(false));
        assert_eq!(container.capabilities.unwrap().drop.unwrap(), ["ALL"]);
        assert_eq!(pod.automount_service_account_token, Some(false));
    }

    #[test]
    fn a_hook_sees_its_own_secret_and_what_happened_and_nothing_else() {
        let own = JobHook {
            image: "notify:1".into(),
            secret_ref: Some(collect_api::source::SecretRef { name: "chat".into() }),
            env: BTreeMap::from([("CHANNEL".into(), "ops".into()), ("COLLECT_TASK".into(), "a lie".into())]),
            ..JobHook::default()
        };
        let event = HookEvent { hook: "afterSuccess".into(), task: "x".into(), ..HookEvent::default() };
        let job = JobFor { work: "after-success", runs: Runs::Own(&own, &event), ..job_for() };
        let with_env = WorkerDefaults { env: vec![("ENDPOINT".into(), "http://x".into())], ..defaults() };
        let built = build(&job, &spec(), &with_env);
        let pod = built.spec.unwrap().template.spec.unwrap();
        let names: Vec<_> = pod.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(names, ["tmp", "secret"], "neither the token nor the source's or sink's secrets");
        let container = &pod.containers[0];
        assert_eq!(container.image.as_deref(), Some("notify:1"));
        let told = |name: &str| {
            container.env.iter().flatten().find(|env| env.name == name).and_then(|env| env.value.clone()).unwrap()
        };
        assert_eq!((told("CHANNEL"), told("COLLECT_TASK")), ("ops".to_owned(), "x".to_owned()));
        assert!(told("COLLECT_EVENT").contains("afterSuccess"));
        assert!(!container.env.iter().flatten().any(|env| env.name == "ENDPOINT"), "that is for workers");
    }

    #[test]
    fn the_rules_stand_in_the_order_of_the_table() {
        let rules = example().spec.unwrap().pod_failure_policy.unwrap().rules;
        assert!(rules[0].on_pod_conditions.is_some());
        let codes: Vec<i32> = rules[1..].iter().map(|rule| rule.on_exit_codes.as_ref().unwrap().values[0]).collect();
        assert_eq!(codes, RULE_EXIT_CODES);
    }
}
