package node

import (
	"context"
	"fmt"
	"runtime"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A kubelet's own values: the lease lives 40 s and is renewed at a quarter of it; the node's status is written rarely.
const (
	leaseDuration  = 40
	leaseInterval  = 5 * time.Second
	statusInterval = time.Minute
	leaseNamespace = "kube-node-lease"
)

// register writes the node until the API server takes it.
func (a *agent) register(ctx context.Context, name string, port int) {
	for ctx.Err() == nil {
		err := a.writeNode(ctx, name, port)
		if err == nil {
			return
		}
		fmt.Println("register", name, err)
		pause(ctx, 200*time.Millisecond)
	}
}

func (a *agent) writeNode(ctx context.Context, name string, port int) error {
	node, err := a.node(name, port)
	if err != nil {
		return err
	}
	nodes := a.client.CoreV1().Nodes()
	there, err := nodes.Create(ctx, node, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		there, err = nodes.Get(ctx, name, metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	there.Status = node.Status
	if _, err := nodes.UpdateStatus(ctx, there, metav1.UpdateOptions{}); err != nil {
		return err
	}
	return a.renewLease(ctx, name)
}

func (a *agent) node(name string, port int) (*corev1.Node, error) {
	capacity := corev1.ResourceList{}
	for resourceName, text := range map[corev1.ResourceName]string{
		corev1.ResourceCPU: a.CPU, corev1.ResourceMemory: a.Memory, corev1.ResourcePods: fmt.Sprint(a.Pods), corev1.ResourceEphemeralStorage: "100Gi",
	} {
		quantity, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("capacity %s=%s: %w", resourceName, text, err)
		}
		capacity[resourceName] = quantity
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH, "collect.dev/node-kind": a.Kind,
		}},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity, Conditions: nodeConditions(metav1.Now()),
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}, {Type: corev1.NodeHostName, Address: "localhost"}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(port)}},
			NodeInfo: corev1.NodeSystemInfo{
				KubeletVersion: "v1.37.1", OperatingSystem: "linux", Architecture: runtime.GOARCH,
				OSImage: "collect.dev " + a.Kind + " node", ContainerRuntimeVersion: a.Kind + "://1",
			},
		},
	}, nil
}

func nodeConditions(now metav1.Time) []corev1.NodeCondition {
	condition := func(kind corev1.NodeConditionType, status corev1.ConditionStatus, reason string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: kind, Status: status, Reason: reason, LastHeartbeatTime: now, LastTransitionTime: now}
	}
	return []corev1.NodeCondition{
		condition(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory"),
		condition(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure"),
		condition(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID"),
		condition(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady"),
	}
}

// heartbeat renews the lease until ctx ends; a node that a scenario lost falls silent.
func (a *agent) heartbeat(ctx context.Context, name string) {
	lastStatus := time.Now()
	for ctx.Err() == nil {
		pause(ctx, leaseInterval)
		if ctx.Err() != nil || a.isLost(name) {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, leaseInterval)
		if err := a.renewLease(attempt, name); err != nil {
			fmt.Println("lease", name, err)
		}
		if time.Since(lastStatus) > statusInterval && a.refreshConditions(attempt, name) == nil {
			lastStatus = time.Now()
		}
		cancel()
	}
}

// refreshConditions says again that the node is well: the node controller takes that back while the agent is away.
func (a *agent) refreshConditions(ctx context.Context, name string) error {
	node, err := a.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	before := map[corev1.NodeConditionType]corev1.NodeCondition{}
	for _, condition := range node.Status.Conditions {
		before[condition.Type] = condition
	}
	node.Status.Conditions = nodeConditions(metav1.Now())
	for i, condition := range node.Status.Conditions {
		if old, there := before[condition.Type]; there && old.Status == condition.Status {
			node.Status.Conditions[i].LastTransitionTime = old.LastTransitionTime
		}
	}
	_, err = a.client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

func (a *agent) renewLease(ctx context.Context, name string) error {
	leases := a.client.CoordinationV1().Leases(leaseNamespace)
	now, duration := metav1.NowMicro(), int32(leaseDuration)
	lease, err := leases.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: leaseNamespace},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &duration, RenewTime: &now},
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec.RenewTime, lease.Spec.HolderIdentity = &now, &name
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}

// pause sleeps, or returns when ctx ends.
func pause(ctx context.Context, duration time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(duration):
	}
}
