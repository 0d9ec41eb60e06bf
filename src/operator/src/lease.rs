//! A lease saves work: of several replicas one does the passes. Correctness never depends on it (I17).
//!
//! Expiry is judged by watching the lease stay unchanged on our own monotonic clock, so clocks of two hosts are never compared.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{clock, context::Context, error::chain};

/// How long a lease holds that is not renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed or looked at.
const RENEW: Duration = Duration::from_secs(5);

/// Holds the lease as long as it can, until `stop`; then gives it back.
pub async fn hold(ctx: Arc<Context>, namespace: String, name: String, stop: CancellationToken) {
    let api = Api::<Lease>::namespaced(ctx.client(), &namespace);
    let mut seen: Option<(Option<String>, Instant)> = None;
    let mut renewed = clock::instant();
    loop {
        let before = clock::instant();
        match tokio::time::timeout(RENEW, round(&ctx, &api, &name, &mut seen)).await {
            Ok(Ok(true)) => {
                renewed = before;
                ctx.set_leads(true);
            }
            Ok(Ok(false)) => ctx.set_leads(false),
            Ok(Err(error)) => warn!(error = chain(&error), "the lease could not be renewed"),
            Err(_) => warn!("the API server did not answer about the lease in time"),
        }
        if renewed.elapsed() >= DURATION {
            ctx.set_leads(false);
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(RENEW.mul_f64(clock::jitter())) => {}
        }
    }
    if ctx.leads() {
        ctx.set_leads(false);
        release(&ctx, &api, &name).await;
    }
}

/// One look at the lease: whether it is ours now.
async fn round(
    ctx: &Context,
    api: &Api<Lease>,
    name: &str,
    seen: &mut Option<(Option<String>, Instant)>,
) -> Result<bool, kube::Error> {
    let Some(lease) = api.get_opt(name).await? else {
        let lease = Lease {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            spec: Some(spec(ctx, None)),
        };
        return match api.create(&PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        };
    };
    let version = lease.metadata.resource_version.clone();
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    if holder != ctx.me && !holder.is_empty() {
        match seen {
            Some((known, since)) if *known == version && since.elapsed() >= DURATION => {
                debug!(holder, "the lease has expired")
            }
            Some((known, _)) if *known == version => return Ok(false),
            _ => {
                *seen = Some((version, clock::instant()));
                return Ok(false);
            }
        }
    }
    let mut taken = lease.clone();
    taken.spec = Some(spec(ctx, lease.spec.as_ref()));
    match api.replace(name, &PostParams::default(), &taken).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn spec(ctx: &Context, old: Option<&LeaseSpec>) -> LeaseSpec {
    let now = MicroTime(clock::now());
    let kept = old.filter(|old| old.holder_identity.as_deref() == Some(&ctx.me));
    LeaseSpec {
        holder_identity: Some(ctx.me.clone()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: kept.and_then(|old| old.acquire_time.clone()).or_else(|| Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(old.and_then(|old| old.lease_transitions).unwrap_or(0) + i32::from(kept.is_none())),
        ..LeaseSpec::default()
    }
}

/// Gives the lease back, so that another replica need not wait for its expiry.
async fn release(ctx: &Context, api: &Api<Lease>, name: &str) {
    let Ok(Some(mut lease)) = api.get_opt(name).await else { return };
    if let Some(spec) = &mut lease.spec
        && spec.holder_identity.as_deref() == Some(&ctx.me)
    {
        spec.holder_identity = Some(String::new());
        if let Err(error) = api.replace(name, &PostParams::default(), &lease).await {
            debug!(%error, "the lease was not given back");
        }
    }
}
