// Package image keeps unpacked container images for nodes without a container runtime: an OCI archive's layers as a folder, and what its
// configuration says about the process to start. It never runs anything and knows no registry.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Image is an unpacked image.
type Image struct {
	Name       string   `json:"name"`
	Digest     string   `json:"digest"` // of the manifest
	Rootfs     string   `json:"rootfs"`
	Entrypoint []string `json:"entrypoint"`
	Cmd        []string `json:"cmd"`
	Env        []string `json:"env"`
	WorkingDir string   `json:"workingDir"`
}

// ErrUnknown is the answer for an image that was never loaded.
var ErrUnknown = errors.New("image is not loaded")

// Normalise gives an image's full name, as a container runtime would understand it.
func Normalise(name string) string {
	if domain, _, found := strings.Cut(name, "/"); !found {
		name = "docker.io/library/" + name
	} else if !strings.ContainsAny(domain, ".:") && domain != "localhost" {
		name = "docker.io/" + name
	}
	if last := name[strings.LastIndexByte(name, '/')+1:]; !strings.ContainsAny(last, ":@") {
		name += ":latest"
	}
	return name
}

// Find looks an image up by name in a folder that Load filled.
func Find(dir, name string) (*Image, error) {
	data, err := os.ReadFile(recordPath(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrUnknown
	}
	if err != nil {
		return nil, err
	}
	image := new(Image)
	if err := json.Unmarshal(data, image); err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return image, nil
}

func recordPath(dir, name string) string {
	sum := sha256.Sum256([]byte(Normalise(name)))
	return filepath.Join(dir, hex.EncodeToString(sum[:8])+".json")
}

// Program gives the path of a command of this image: its argv[0] inside the unpacked folder, looked up along PATH if it has no slash.
// A link is followed within the folder. What the image does not have is taken from the machine, so that `sh` works in an empty image.
func (i *Image) Program(argv0, path string) string {
	candidates := []string{argv0}
	if !strings.Contains(argv0, "/") {
		candidates = nil
		for _, dir := range strings.Split(path, ":") {
			candidates = append(candidates, filepath.Join(dir, argv0))
		}
	}
	for _, candidate := range candidates {
		if found, ok := i.resolve(candidate); ok {
			return found
		}
	}
	return argv0
}

// resolve gives the real path of a file of the image.
func (i *Image) resolve(name string) (string, bool) {
	for range 16 {
		path := filepath.Join(i.Rootfs, filepath.Clean("/"+name))
		info, err := os.Lstat(path)
		if err != nil {
			return "", false
		}
		if info.Mode()&os.ModeSymlink == 0 {
			return path, info.Mode().IsRegular()
		}
		target, err := os.Readlink(path)
		if err != nil {
			return "", false
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir("/"+name), target)
		}
		name = target
	}
	return "", false
}
