package release

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestTheImagesHoldTheProgramsAndHaveTheNamesOfTheChart(t *testing.T) {
	chart := string(read(t, made.tree, "charts/collect-operator/Chart.yaml"))
	notes := string(read(t, made.folder, "RELEASE-NOTES.md"))
	for image, program := range map[string]string{"operator": "collect-operator", "worker": "collect-worker"} {
		folder := t.TempDir()
		run(t, folder, "tar", "-xf", filepath.Join(made.folder, image+"_"+platform+".oci.tar"))
		index, err := layout.ImageIndexFromPath(folder)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Index(index); err != nil {
			t.Errorf("%s: %v", image, err)
		}
		manifest, err := index.IndexManifest()
		if err != nil || len(manifest.Manifests) != 1 {
			t.Fatalf("%s: %v, %v", image, manifest, err)
		}
		told := manifest.Manifests[0]
		name := told.Annotations["io.containerd.image.name"]
		if name != "docker.io/local/"+image+":"+made.version || !strings.Contains(chart, "image: "+name+"\n") {
			t.Errorf("the image is named %s", name)
		}
		if !strings.Contains(notes, told.Digest.String()) {
			t.Errorf("the notes do not tell the digest of %s", image)
		}
		held, err := index.Image(told.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := held.ConfigFile()
		if err != nil || config.Config.User != "65532:65532" || len(config.Config.Entrypoint) != 1 || config.Config.Entrypoint[0] != "/"+program {
			t.Errorf("%s: %+v, %v", image, config, err)
		}
		all := untar(t, mutate.Extract(held))
		if len(all) != 1 || !bytes.Equal(all[program].data, read(t, os.Getenv("COLLECT_BIN_DIR"), program)) || all[program].mode&0o111 == 0 {
			t.Errorf("%s does not hold %s alone", image, program)
		}
	}
}
