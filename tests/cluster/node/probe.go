package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// probes polls readiness. Other probes are not looked at: a process that must end ends by itself here.
type probes map[string]*probe

type probe struct {
	spec  *corev1.Probe
	url   string // empty: only whether the port accepts
	port  string
	due   time.Time
	busy  atomic.Bool
	ready atomic.Bool
}

func newProbes(pod *corev1.Pod) probes {
	all := probes{}
	for _, container := range pod.Spec.Containers {
		spec := container.ReadinessProbe
		switch {
		case spec == nil:
		case spec.HTTPGet != nil:
			port, scheme := portNumber(container, spec.HTTPGet.Port), "http"
			if spec.HTTPGet.Scheme == corev1.URISchemeHTTPS {
				scheme = "https"
			}
			all[container.Name] = &probe{spec: spec, url: fmt.Sprintf("%s://127.0.0.1:%s%s", scheme, port, spec.HTTPGet.Path)}
		case spec.TCPSocket != nil:
			all[container.Name] = &probe{spec: spec, port: portNumber(container, spec.TCPSocket.Port)}
		}
	}
	return all
}

func portNumber(container corev1.Container, port intstr.IntOrString) string {
	for _, named := range container.Ports {
		if port.Type == intstr.String && named.Name == port.StrVal {
			return fmt.Sprint(named.ContainerPort)
		}
	}
	return port.String()
}

// run starts the polls that are due and takes over what they found.
func (p probes) run(containers []*containerState) {
	for _, container := range containers {
		if container.init || !container.running() || container.spec.ReadinessProbe == nil {
			continue
		}
		probe := p[container.spec.Name]
		if probe == nil { // a kind of probe that is not polled here
			container.ready = true
			continue
		}
		container.ready = probe.ready.Load()
		if time.Now().Before(probe.due) || !probe.busy.CompareAndSwap(false, true) {
			continue
		}
		probe.due = time.Now().Add(max(time.Duration(probe.spec.PeriodSeconds)*time.Second, time.Second))
		if !container.ready { // a kubelet is as eager until the first success
			probe.due = time.Now().Add(250 * time.Millisecond)
		}
		go func() {
			defer probe.busy.Store(false)
			probe.ready.Store(probe.ask())
		}()
	}
}

func (p *probe) ask() bool {
	timeout := max(time.Duration(p.spec.TimeoutSeconds)*time.Second, time.Second)
	if p.url == "" {
		connection, err := net.DialTimeout("tcp", "127.0.0.1:"+p.port, timeout)
		if err != nil {
			return false
		}
		connection.Close()
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return false
	}
	response, err := probeClient.Do(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode >= 200 && response.StatusCode < 400
}

// probeClient checks no certificates, as a kubelet's does not.
var probeClient = &http.Client{Transport: &http.Transport{
	TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
}}
