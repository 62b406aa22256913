package jsonfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestWhatWasWrittenIsReadAndNothingLiesBeside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "value.json")
	for _, want := range []map[string]int{{"a": 1, "b": 2}, {"a": 3}} {
		if err := Write(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := Read[map[string]int](path)
		if err != nil || len(got) != len(want) || got["a"] != want["a"] {
			t.Errorf("%v, %v", got, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestMissingFileIsKnownFromABrokenOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "value.json")
	if _, err := Read[int](path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read[int](path); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
