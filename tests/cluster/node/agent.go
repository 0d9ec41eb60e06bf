// Package node is a kubelet without containers. It registers nodes, takes the pods that are scheduled to them and reports on them as a kubelet
// would; what "running a container" means is up to its runner: a local process, or a script that only says how it ended.
//
// It must never report what did not happen, and never write more often than a kubelet: tests count both.
package node

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Options of an agent.
type Options struct {
	Kind       string // process or scripted
	Name       string // of the first node; others are NAME-2, NAME-3, …
	Nodes      int
	Dir        string // what belongs to pods: logs, volumes, pids
	Images     string // folder that image.Load filled
	Kubeconfig string
	Script     string // default scenario
	CPU        string
	Memory     string
	Pods       int
	Listen     string // address for logs
	CA         string // certificate files: the authority of callers, and the agent's own
	Cert, Key  string
}

// agent is what all nodes of one process share.
type agent struct {
	Options
	client kubernetes.Interface
	runner runner
	server *url.URL // the API server, as pods should call it

	mu      sync.Mutex
	workers map[types.UID]*worker
	lost    map[string]bool // nodes that a scenario cut off: no heartbeat, no report
}

// Run serves the nodes until ctx ends. Then every process of theirs ends: it is a reboot, as far as the cluster can see.
func Run(ctx context.Context, options Options) error {
	config, err := clientcmd.BuildConfigFromFlags("", options.Kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 2000, 4000
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	config.UserAgent = "collect-node"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	server, err := url.Parse(config.Host)
	if err != nil {
		return err
	}
	a := &agent{Options: options, client: client, server: server, workers: map[types.UID]*worker{}, lost: map[string]bool{}}
	switch options.Kind {
	case "process":
		a.runner = &castingRunner{script: &scriptedRunner{agent: a}, others: &processRunner{agent: a}}
		killOrphans(options.Dir)
	case "scripted":
		if _, err := ParseScenario(options.Script); err != nil {
			return err
		}
		a.runner = &scriptedRunner{agent: a}
	default:
		return fmt.Errorf("kind %q: want process or scripted", options.Kind)
	}
	listener, err := net.Listen("tcp", options.Listen)
	if err != nil {
		return err
	}
	if err := a.serveLogs(ctx, listener); err != nil {
		return err
	}
	var done sync.WaitGroup
	for i := range options.Nodes {
		name := options.Name
		if i > 0 {
			name = fmt.Sprintf("%s-%d", options.Name, i+1)
		}
		done.Go(func() { a.serveNode(ctx, name, listener.Addr().(*net.TCPAddr).Port) })
	}
	done.Wait()
	a.waitForWorkers()
	return nil
}

// serveNode registers one node, keeps it alive and follows its pods.
func (a *agent) serveNode(ctx context.Context, name string, port int) {
	a.register(ctx, name, port)
	factory := informers.NewSharedInformerFactoryWithOptions(a.client, 0, informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", name).String()
	}))
	pods := factory.Core().V1().Pods().Informer()
	_, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { a.podChanged(ctx, object) },
		UpdateFunc: func(_, object any) { a.podChanged(ctx, object) },
		DeleteFunc: a.podGone,
	})
	if err != nil {
		fmt.Println("pods are not followed:", err)
		return
	}
	factory.Start(ctx.Done())
	a.heartbeat(ctx, name)
	factory.Shutdown()
}

// podChanged gives a pod's newest version to its worker, and a new pod a worker.
func (a *agent) podChanged(ctx context.Context, object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.workers[pod.UID]
	if w == nil {
		w = newWorker(a, pod)
		a.workers[pod.UID] = w
		go func() {
			w.run(ctx)
			close(w.finished)
			if ctx.Err() == nil { // else the agent waits for it
				a.mu.Lock()
				defer a.mu.Unlock()
				delete(a.workers, w.pod.UID)
			}
		}()
		return
	}
	w.update(pod)
}

// podGone ends what a forced deletion left running.
func (a *agent) podGone(object any) {
	if tombstone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = tombstone.Obj
	}
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.workers[pod.UID]; w != nil {
		w.forget()
	}
}

func (a *agent) waitForWorkers() {
	a.mu.Lock()
	workers := make([]*worker, 0, len(a.workers))
	for _, w := range a.workers {
		workers = append(workers, w)
	}
	a.mu.Unlock()
	for _, w := range workers {
		select {
		case <-w.finished:
		case <-time.After(5 * time.Second):
		}
	}
}

// lose cuts a node off for good; its pods go on unseen.
func (a *agent) lose(node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lost[node] = true
}

func (a *agent) isLost(node string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lost[node]
}

// findPod gives the worker of a pod by name, for its logs.
func (a *agent) findPod(namespace, name string) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		if w.pod.Namespace == namespace && w.pod.Name == name {
			return w
		}
	}
	return nil
}
