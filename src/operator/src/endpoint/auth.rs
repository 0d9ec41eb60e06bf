//! Who calls: token → TokenReview → pod → Job → ledger. Labels are never trusted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use collect_api::protocol::TOKEN_AUDIENCE;
use k8s_openapi::{
    api::{
        authentication::v1::{TokenReview, TokenReviewSpec},
        batch::v1::Job,
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, ResourceExt, api::PostParams, runtime::reflector::ObjectRef};
use tracing::warn;

use crate::{clock, context::Context, endpoint::Refusal, error::chain, watch::controller_of};

/// How long a review is believed.
const REVIEW_HOLDS: Duration = Duration::from_secs(60);
/// Reviews that are kept.
const REVIEWS: usize = 20_000;

/// A worker that has proved which Job it belongs to.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Namespace.
    pub namespace: String,
    /// Name of the Job; it is derived from the ledger's uid and the attempt, so it proves the attempt.
    pub job: String,
    /// The Job's owner: the object that holds the ledger.
    pub ledger: OwnerReference,
}

/// Reviews tokens.
#[derive(Default)]
pub struct Authority {
    reviews: Mutex<HashMap<blake3::Hash, (Instant, Arc<PodClaim>)>>,
}

/// What a token proves.
#[derive(Debug)]
struct PodClaim {
    namespace: String,
    pod: String,
    pod_uid: String,
}

impl Authority {
    /// The worker that sent these headers.
    pub async fn caller(&self, ctx: &Context, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or(Refusal::Unauthenticated("no bearer token"))?;
        let claim = self.review(ctx, token).await?;
        let pod = pod(ctx, &claim).await?;
        let owner = controller_of(pod.as_ref())
            .filter(|owner| owner.kind == "Job" && owner.api_version.starts_with("batch/"))
            .ok_or(Refusal::Forbidden("the pod belongs to no Job"))?;
        let job = job(ctx, &claim.namespace, owner).await?;
        let ledger = controller_of(job.as_ref())
            .filter(|owner| owner.api_version.starts_with(collect_api::GROUP))
            .ok_or(Refusal::Forbidden("the Job belongs to no collection"))?;
        Ok(Caller { namespace: claim.namespace.clone(), job: job.name_any(), ledger: ledger.clone() })
    }

    async fn review(&self, ctx: &Context, token: &str) -> Result<Arc<PodClaim>, Refusal> {
        let key = blake3::hash(token.as_bytes());
        let known = self.reviews.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((_, claim)) = known.filter(|(at, _)| at.elapsed() < REVIEW_HOLDS) {
            return Ok(claim);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![TOKEN_AUDIENCE.into()]) },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(ctx.client()).create(&PostParams::default(), &review).await;
        let status = answer
            .map_err(|error| {
                warn!(error = chain(&error), "a token could not be reviewed");
                Refusal::Unavailable("the token could not be reviewed".into())
            })?
            .status
            .unwrap_or_default();
        let for_us = status.audiences.iter().flatten().any(|audience| audience == TOKEN_AUDIENCE);
        if status.authenticated != Some(true) || !for_us {
            return Err(Refusal::Unauthenticated("the token is not valid for this endpoint"));
        }
        let user = status.user.unwrap_or_default();
        let extra =
            |key: &str| user.extra.as_ref().and_then(|extra| extra.get(key)).and_then(|values| values.first()).cloned();
        let namespace = user
            .username
            .as_deref()
            .and_then(|name| name.strip_prefix("system:serviceaccount:"))
            .and_then(|rest| rest.split(':').next())
            .map(str::to_owned);
        let (Some(namespace), Some(pod), Some(pod_uid)) =
            (namespace, extra("authentication.kubernetes.io/pod-name"), extra("authentication.kubernetes.io/pod-uid"))
        else {
            return Err(Refusal::Forbidden("the token is not bound to a pod"));
        };
        let claim = Arc::new(PodClaim { namespace, pod, pod_uid });
        let mut reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        if reviews.len() >= REVIEWS {
            reviews.retain(|_, (at, _)| at.elapsed() < REVIEW_HOLDS);
        }
        reviews.insert(key, (clock::instant(), claim.clone()));
        Ok(claim)
    }
}

async fn pod(ctx: &Context, claim: &PodClaim) -> Result<Arc<Pod>, Refusal> {
    if let Some(pod) = ctx.stores.pods.find(&claim.pod, &claim.pod_uid) {
        return Ok(pod);
    }
    match ctx.writer.api::<Pod>(&claim.namespace).get_opt(&claim.pod).await {
        Ok(Some(pod)) if pod.uid().as_deref() == Some(&claim.pod_uid) => Ok(Arc::new(pod)),
        Ok(_) => Err(Refusal::Forbidden("the token's pod is gone")),
        Err(error) => Err(Refusal::Unavailable(chain(&error))),
    }
}

async fn job(ctx: &Context, namespace: &str, owner: &OwnerReference) -> Result<Arc<Job>, Refusal> {
    let known = ctx.stores.jobs.get(&ObjectRef::new(&owner.name).within(namespace));
    if let Some(job) = known.filter(|job| job.uid().as_deref() == Some(&owner.uid)) {
        return Ok(job);
    }
    match ctx.writer.api::<Job>(namespace).get_opt(&owner.name).await {
        Ok(Some(job)) if job.uid().as_deref() == Some(&owner.uid) => Ok(Arc::new(job)),
        Ok(_) => Err(Refusal::Forbidden("the pod's Job is gone")),
        Err(error) => Err(Refusal::Unavailable(chain(&error))),
    }
}
