//! The Job of an attempt. What a user may say about the pod is an allow-list, and what keeps the pod harmless is set last.

use std::collections::BTreeMap;

use collect_api::{
    CollectTaskSpec, labels,
    protocol::{ASSIGNMENT_ENV, POD_UID_ENV, SECRETS_DIR, TOKEN_AUDIENCE, VOLUME_DIR},
    sink::Sink,
    source::Source,
    worker::{ResourceAmounts, Worker},
};
use k8s_openapi::{
    api::{
        batch::v1::{
            Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
            PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
        },
        core::v1::{
            Capabilities, Container, EnvVar, EnvVarSource, KeyToPath, ObjectFieldSelector,
            PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, ProjectedVolumeSource,
            ResourceRequirements, SeccompProfile, SecretProjection, SecurityContext, ServiceAccountTokenProjection,
            Toleration, Volume, VolumeMount, VolumeProjection,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

use crate::{exit::RULE_EXIT_CODES, resolve};

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
    /// `collect`, `plan` or `commit`.
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
    /// Value of the assignment's environment variable.
    pub assignment: String,
}

/// Builds the Job.
pub fn build(job: &JobFor<'_>, spec: &CollectTaskSpec, defaults: &WorkerDefaults) -> Job {
    let labels = labels_of(job);
    let worker = spec.worker.clone().unwrap_or_default();
    let deadline = spec.attempt_deadline.map_or(resolve::ATTEMPT_DEADLINE, collect_api::Duration::get);
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
            active_deadline_seconds: Some(i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX).max(1)),
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
    let (volumes, mounts) = volumes(spec);
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
            image: Some(worker.image.unwrap_or_else(|| defaults.image.clone())),
            image_pull_policy: Some(defaults.pull_policy.clone()),
            env: Some(vec![
                EnvVar { name: ASSIGNMENT_ENV.into(), value: Some(job.assignment.clone()), ..EnvVar::default() },
                EnvVar {
                    name: POD_UID_ENV.into(),
                    value_from: Some(EnvVarSource {
                        field_ref: Some(ObjectFieldSelector {
                            field_path: "metadata.uid".into(),
                            ..ObjectFieldSelector::default()
                        }),
                        ..EnvVarSource::default()
                    }),
                    ..EnvVar::default()
                },
                // Workers find what is mounted through these, so that a node without mount namespaces can serve them too.
                EnvVar { name: "COLLECT_SECRETS_DIR".into(), value: Some(SECRETS_DIR.into()), ..EnvVar::default() },
                EnvVar { name: "COLLECT_VOLUME_DIR".into(), value: Some(VOLUME_DIR.into()), ..EnvVar::default() },
            ]),
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

/// The token, exactly the keys that are needed of each secret, and the sink's claim.
fn volumes(spec: &CollectTaskSpec) -> (Vec<Volume>, Vec<VolumeMount>) {
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
    let http = spec.source.iter().flat_map(|Source::Http(http)| http.secret_keys());
    let store = spec.sink.iter().flat_map(|Sink::ObjectStore(store)| store.secret_keys());
    for (secret, key, _) in http.chain(store) {
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
    if let Some(Sink::ObjectStore(store)) = &spec.sink
        && let Some(volume) = &store.volume
    {
        mounts.push(mount("sink", VOLUME_DIR, false));
        volumes.push(Volume {
            name: "sink".into(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: volume.claim_name.clone(),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    (volumes, mounts)
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount { name: name.into(), mount_path: path.into(), read_only: Some(read_only), ..VolumeMount::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Job {
        let spec: CollectTaskSpec = serde_json::from_value(serde_json::json!({
            "source": {"http": {"url": "https://x.example", "auth": {"bearer": {"secretRef": {"name": "api", "key": "token"}}}}},
            "sink": {"objectStore": {"url": "s3://lake/x", "secretRef": {"name": "lake"}}},
            "record": {"key": ["id"]},
            "worker": {"resources": {"limits": {"memory": "512Mi"}}, "tolerations": [{"key": "spot", "operator": "Exists"}]},
        }))
        .unwrap();
        let job = JobFor {
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
            assignment: "{}".into(),
        };
        build(&job, &spec, &WorkerDefaults { image: "worker:1".into(), pull_policy: "IfNotPresent".into() })
    }

    #[test]
    fn the_job_of_an_attempt() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&example()).unwrap());
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
    fn the_rules_stand_in_the_order_of_the_table() {
        let rules = example().spec.unwrap().pod_failure_policy.unwrap().rules;
        assert!(rules[0].on_pod_conditions.is_some());
        let codes: Vec<i32> = rules[1..].iter().map(|rule| rule.on_exit_codes.as_ref().unwrap().values[0]).collect();
        assert_eq!(codes, RULE_EXIT_CODES);
    }
}
