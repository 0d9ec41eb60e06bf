package node

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// file is one file of a volume.
type file struct {
	data []byte
	mode os.FileMode
}

// tokenFile is a ServiceAccount token that must be renewed while the pod runs.
type tokenFile struct {
	path    string
	mode    os.FileMode
	source  corev1.ServiceAccountTokenProjection
	renewAt time.Time
}

// makeVolumes gives each volume's real folder. What a kubelet would wait for is an error here, and is tried again.
func (w *worker) makeVolumes(ctx context.Context) (map[string]string, []*tokenFile, error) {
	objects := w.agent.objects(w.pod.Namespace)
	folders, tokens := map[string]string{}, []*tokenFile(nil)
	for _, volume := range w.pod.Spec.Volumes {
		own := filepath.Join(w.dir(), "volumes", volume.Name)
		folder, more, err := w.makeVolume(ctx, volume, own, objects)
		if err != nil {
			return nil, nil, fmt.Errorf("volume %s: %w", volume.Name, err)
		}
		folders[volume.Name] = folder
		tokens = append(tokens, more...)
	}
	return folders, tokens, nil
}

func (w *worker) makeVolume(ctx context.Context, volume corev1.Volume, own string, objects *objects) (string, []*tokenFile, error) {
	files, mode := map[string]file{}, os.FileMode(0o644)
	var err error
	switch {
	case volume.EmptyDir != nil:
		return own, nil, os.MkdirAll(own, 0o777)
	case volume.HostPath != nil:
		return volume.HostPath.Path, nil, makeHostPath(volume.HostPath)
	case volume.PersistentVolumeClaim != nil:
		folder, err := w.claimedFolder(ctx, volume.PersistentVolumeClaim.ClaimName)
		return folder, nil, err
	case volume.Secret != nil:
		var data map[string][]byte
		data, err = objects.secret(ctx, volume.Secret.SecretName, isTrue(volume.Secret.Optional))
		if err == nil {
			files, err = project(data, volume.Secret.Items, modeOf(volume.Secret.DefaultMode, mode), isTrue(volume.Secret.Optional))
		}
	case volume.ConfigMap != nil:
		var data map[string][]byte
		data, err = objects.configMap(ctx, volume.ConfigMap.Name, isTrue(volume.ConfigMap.Optional))
		if err == nil {
			files, err = project(data, volume.ConfigMap.Items, modeOf(volume.ConfigMap.DefaultMode, mode), isTrue(volume.ConfigMap.Optional))
		}
	case volume.DownwardAPI != nil:
		files, err = downward(w.pod, volume.DownwardAPI.Items, modeOf(volume.DownwardAPI.DefaultMode, mode))
	case volume.Projected != nil:
		return w.makeProjected(ctx, volume.Projected, own, objects)
	default:
		return "", nil, fmt.Errorf("is of a kind this node does not know")
	}
	if err != nil {
		return "", nil, err
	}
	return own, nil, writeFiles(own, files)
}

func (w *worker) makeProjected(ctx context.Context, projected *corev1.ProjectedVolumeSource, own string, objects *objects) (string, []*tokenFile, error) {
	mode := modeOf(projected.DefaultMode, 0o644)
	files, tokens := map[string]file{}, []*tokenFile(nil)
	for _, source := range projected.Sources {
		var some map[string]file
		var data map[string][]byte
		var err error
		switch {
		case source.Secret != nil:
			optional := isTrue(source.Secret.Optional)
			if data, err = objects.secret(ctx, source.Secret.Name, optional); err == nil {
				some, err = project(data, source.Secret.Items, mode, optional)
			}
		case source.ConfigMap != nil:
			optional := isTrue(source.ConfigMap.Optional)
			if data, err = objects.configMap(ctx, source.ConfigMap.Name, optional); err == nil {
				some, err = project(data, source.ConfigMap.Items, mode, optional)
			}
		case source.DownwardAPI != nil:
			some, err = downward(w.pod, source.DownwardAPI.Items, mode)
		case source.ServiceAccountToken != nil:
			token := &tokenFile{path: filepath.Join(own, source.ServiceAccountToken.Path), mode: mode, source: *source.ServiceAccountToken}
			err = w.renew(ctx, token)
			tokens = append(tokens, token)
		}
		if err != nil {
			return "", nil, err
		}
		maps.Copy(files, some)
	}
	return own, tokens, writeFiles(own, files)
}

// project picks keys of an object as files; without items all of them.
func project(data map[string][]byte, items []corev1.KeyToPath, mode os.FileMode, optional bool) (map[string]file, error) {
	files := map[string]file{}
	for _, item := range items {
		value, there := data[item.Key]
		if !there && !optional {
			return nil, fmt.Errorf("references non-existent key %q", item.Key)
		}
		if there {
			files[item.Path] = file{value, modeOf(item.Mode, mode)}
		}
	}
	if len(items) == 0 {
		for key, value := range data {
			files[key] = file{value, mode}
		}
	}
	return files, nil
}

func downward(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode os.FileMode) (map[string]file, error) {
	files := map[string]file{}
	for _, item := range items {
		if item.FieldRef == nil {
			return nil, fmt.Errorf("file %s: only fields of the pod are known to this node", item.Path)
		}
		value, err := field(pod, item.FieldRef.FieldPath)
		if err != nil {
			return nil, err
		}
		files[item.Path] = file{[]byte(value), modeOf(item.Mode, mode)}
	}
	return files, nil
}

// renew asks for a token bound to this pod and puts it in place of the old one at once. A kubelet renews at four fifths of its life.
func (w *worker) renew(ctx context.Context, token *tokenFile) error {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: token.source.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: w.pod.Name, UID: w.pod.UID},
	}}
	if token.source.Audience != "" {
		request.Spec.Audiences = []string{token.source.Audience}
	}
	answer, err := w.agent.client.CoreV1().ServiceAccounts(w.pod.Namespace).CreateToken(ctx, w.pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	life := time.Until(answer.Status.ExpirationTimestamp.Time)
	token.renewAt = time.Now().Add(life * 4 / 5)
	return replaceFile(token.path, []byte(answer.Status.Token), token.mode)
}

// keepTokens renews tokens until ctx ends.
func (w *worker) keepTokens(ctx context.Context, tokens []*tokenFile) {
	for len(tokens) > 0 && ctx.Err() == nil {
		pause(ctx, 5*time.Second)
		for _, token := range tokens {
			if ctx.Err() == nil && time.Now().After(token.renewAt) {
				if err := w.renew(ctx, token); err != nil && ctx.Err() == nil {
					fmt.Println("token", w.pod.Namespace, w.pod.Name, err)
				}
			}
		}
	}
}

// claimedFolder follows a claim to its volume, which must be a folder of this machine.
func (w *worker) claimedFolder(ctx context.Context, name string) (string, error) {
	claim, err := w.agent.client.CoreV1().PersistentVolumeClaims(w.pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if claim.Status.Phase != corev1.ClaimBound {
		return "", fmt.Errorf("claim %s is not bound", name)
	}
	volume, err := w.agent.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	switch {
	case err != nil:
		return "", err
	case volume.Spec.HostPath != nil:
		return volume.Spec.HostPath.Path, makeHostPath(volume.Spec.HostPath)
	case volume.Spec.Local != nil:
		return volume.Spec.Local.Path, nil
	}
	return "", fmt.Errorf("volume %s is not a folder of this machine", volume.Name)
}

func makeHostPath(source *corev1.HostPathVolumeSource) error {
	if source.Type != nil && *source.Type == corev1.HostPathDirectoryOrCreate {
		return os.MkdirAll(source.Path, 0o755)
	}
	if source.Type != nil && *source.Type == corev1.HostPathDirectory {
		_, err := os.Stat(source.Path)
		return err
	}
	return nil
}

func modeOf(given *int32, otherwise os.FileMode) os.FileMode {
	if given == nil {
		return otherwise
	}
	return os.FileMode(*given)
}

func writeFiles(dir string, files map[string]file) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, file := range files {
		if err := replaceFile(filepath.Join(dir, filepath.Clean("/"+name)), file.data, file.mode); err != nil {
			return err
		}
	}
	return nil
}

func replaceFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	partial := path + ".partial"
	if err := os.WriteFile(partial, data, mode); err != nil {
		return err
	}
	return os.Rename(partial, path)
}
