package node

import (
	"context"
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// objects reads what pods refer to, each object once for a pod's start.
type objects struct {
	agent      *agent
	namespace  string
	secrets    map[string]map[string][]byte
	configMaps map[string]map[string][]byte
}

func (a *agent) objects(namespace string) *objects {
	return &objects{agent: a, namespace: namespace, secrets: map[string]map[string][]byte{}, configMaps: map[string]map[string][]byte{}}
}

// secret gives the data, or nil if it is not there and need not be.
func (o *objects) secret(ctx context.Context, name string, optional bool) (map[string][]byte, error) {
	if data, read := o.secrets[name]; read {
		return data, nil
	}
	secret, err := o.agent.client.CoreV1().Secrets(o.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && optional {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	o.secrets[name] = secret.Data
	return secret.Data, nil
}

func (o *objects) configMap(ctx context.Context, name string, optional bool) (map[string][]byte, error) {
	if data, read := o.configMaps[name]; read {
		return data, nil
	}
	configMap, err := o.agent.client.CoreV1().ConfigMaps(o.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && optional {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{}
	for key, value := range configMap.Data {
		data[key] = []byte(value)
	}
	for key, value := range configMap.BinaryData {
		data[key] = value
	}
	o.configMaps[name] = data
	return data, nil
}

// environment resolves a container's variables in their order, so that later ones may use $(EARLIER) ones.
func environment(ctx context.Context, pod *corev1.Pod, container *corev1.Container, objects *objects, rules []rewrite) (map[string]string, error) {
	variables := map[string]string{}
	for _, source := range container.EnvFrom {
		var data map[string][]byte
		var err error
		if ref := source.ConfigMapRef; ref != nil {
			data, err = objects.configMap(ctx, ref.Name, isTrue(ref.Optional))
		} else if ref := source.SecretRef; ref != nil {
			data, err = objects.secret(ctx, ref.Name, isTrue(ref.Optional))
		}
		if err != nil {
			return nil, &waiting{"CreateContainerConfigError", err.Error()}
		}
		for key, value := range data {
			variables[source.Prefix+key] = apply(rules, string(value))
		}
	}
	for _, variable := range container.Env {
		value, set, err := valueOf(ctx, pod, container, variable, objects, expansion.MappingFuncFor(variables))
		if err != nil {
			return nil, &waiting{"CreateContainerConfigError", err.Error()}
		}
		if set {
			variables[variable.Name] = apply(rules, value)
		}
	}
	return variables, nil
}

func valueOf(ctx context.Context, pod *corev1.Pod, container *corev1.Container, variable corev1.EnvVar, objects *objects, known func(string) string) (string, bool, error) {
	source := variable.ValueFrom
	if source == nil {
		return expansion.Expand(variable.Value, known), true, nil
	}
	var data map[string][]byte
	var key string
	var optional bool
	var err error
	switch {
	case source.FieldRef != nil:
		value, err := field(pod, source.FieldRef.FieldPath)
		return value, true, err
	case source.ResourceFieldRef != nil:
		value, err := resourceField(container, source.ResourceFieldRef)
		return value, true, err
	case source.SecretKeyRef != nil:
		key, optional = source.SecretKeyRef.Key, isTrue(source.SecretKeyRef.Optional)
		data, err = objects.secret(ctx, source.SecretKeyRef.Name, optional)
	case source.ConfigMapKeyRef != nil:
		key, optional = source.ConfigMapKeyRef.Key, isTrue(source.ConfigMapKeyRef.Optional)
		data, err = objects.configMap(ctx, source.ConfigMapKeyRef.Name, optional)
	default:
		return "", false, fmt.Errorf("variable %s has a source this node does not know", variable.Name)
	}
	if err != nil {
		return "", false, err
	}
	value, there := data[key]
	if !there && !optional {
		return "", false, fmt.Errorf("variable %s: no key %q", variable.Name, key)
	}
	return string(value), there, nil
}

// field is the downward API.
func field(pod *corev1.Pod, path string) (string, error) {
	if name, key, found := strings.Cut(path, "["); found {
		key = strings.Trim(key, "]'\"")
		switch name {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs":
		return "127.0.0.1", nil
	}
	return "", fmt.Errorf("field %q is not known to this node", path)
}

func formatMap(values map[string]string) string {
	lines := make([]string, 0, len(values))
	for key, value := range values {
		lines = append(lines, fmt.Sprintf("%s=%q", key, value))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// resourceField gives a limit or request in whole divisors, rounded up.
func resourceField(container *corev1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	kind, name, _ := strings.Cut(ref.Resource, ".")
	list := map[string]corev1.ResourceList{"limits": container.Resources.Limits, "requests": container.Resources.Requests}[kind]
	quantity, there := list[corev1.ResourceName(name)]
	if !there {
		return "", fmt.Errorf("container %s has no %s", container.Name, ref.Resource)
	}
	divisor := ref.Divisor.MilliValue()
	if divisor == 0 {
		divisor = 1000
	}
	return fmt.Sprint((quantity.MilliValue() + divisor - 1) / divisor), nil
}

func isTrue(value *bool) bool { return value != nil && *value }
