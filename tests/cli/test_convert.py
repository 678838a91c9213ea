from tests.cli.command import refused


def test_convert_and_generate_from_the_result(medha, generate, tmp_path, model):
    converted = tmp_path / "converted"
    done = medha("convert", model, converted)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert str(converted) in done.stderr
    flags = ("--prompt", "the quick", "--max-tokens", 8, "--ignore-eos")
    assert medha("generate", "--model", converted, *flags).stdout == generate(*flags).stdout
    assert "already exists" in refused(medha("convert", model, converted))
    assert "is not a directory" in refused(medha("convert", tmp_path / "none", tmp_path / "new"))
    assert "dtype 'int8' is not supported" in refused(medha("convert", model, tmp_path / "new", "--dtype", "int8"))
