package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestStatIsReadPastAnyProgramName(t *testing.T) {
	stat := "42 (a) S 1 (b)) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 1 1"
	state, start, ok := parseStat(stat)
	if !ok || state != "S" || start != "123456" {
		t.Errorf("got state %q start %q ok %v", state, start, ok)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 1"} {
		if _, _, ok := parseStat(bad); ok {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestARecycledPidIsAnotherProcess(t *testing.T) {
	self, ok := Identify(os.Getpid())
	if !ok || !self.Alive() {
		t.Fatal("this process is not alive")
	}
	for _, other := range []Identity{
		{Pid: self.Pid, Start: self.Start + "1", Boot: self.Boot},
		{Pid: self.Pid, Start: self.Start, Boot: "another boot"},
	} {
		if other.Alive() {
			t.Errorf("%+v passes for %+v", other, self)
		}
	}
}

func TestAnEndedProcessIsNotAliveEvenBeforeItIsReaped(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, ok := Identify(cmd.Process.Pid)
	if !ok {
		t.Fatal("not alive")
	}
	path := filepath.Join(t.TempDir(), "pids", "sleep")
	if err := id.Write(path); err != nil {
		t.Fatal(err)
	}
	if read, ok := Read(path); !ok || read != id {
		t.Errorf("read %+v, wrote %+v", read, id)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for id.Alive() { // a zombie within a moment: nobody waits for it yet
	}
	_ = cmd.Wait()
}
