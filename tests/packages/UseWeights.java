import android.content.Context;
import effc.models.Digits;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;

/** The digits example with its weights as an asset; arguments: digits.bin in.raw out.raw work. */
public final class UseWeights {
    private static float[] image;
    private static float[] wanted;
    private static byte[] weights;
    private static Path work;

    public static void main(String[] arguments) throws Exception {
        weights = Files.readAllBytes(Paths.get(arguments[0]));
        image = floats(Files.readAllBytes(Paths.get(arguments[1])));
        work = Paths.get(arguments[3]);
        ByteBuffer mapped = Digits.mapWeights(new File(arguments[0]));
        try (Digits model = new Digits(mapped, 1, 0);
                Digits second = new Digits(mapped, 2, 0)) {
            wanted = scores(model);
            expect(Arrays.equals(scores(second), wanted), "instances share the weights");
        }
        assets("aligned", 128, false, 0);
        assets("misaligned", 132, false, 1);
        assets("compressed", 128, true, 1);
        refusals();
        ByteBuffer out = ByteBuffer.allocate(40).order(ByteOrder.nativeOrder());
        out.asFloatBuffer().put(wanted);
        Files.write(Paths.get(arguments[2]), out.array());
        System.out.println("all fine");
    }

    /** Opens a model from an APK twice; the asset is copied at most once. */
    private static void assets(String name, int offset, boolean compressed, int copies)
            throws Exception {
        Context context = context(name, weights, offset, compressed);
        for (int i = 0; i < 2; i++) {
            try (Digits model = Digits.open(context, 2, 0)) {
                expect(Arrays.equals(scores(model), wanted), name);
            }
        }
        expect(context.getAssets().streams == copies, name + ": copies");
        Set<String> files = new HashSet<>(Arrays.asList(context.getCodeCacheDir().list()));
        expect(files.size() == copies, name + ": no other files are left");
        for (String file : files) {
            byte[] copy = Files.readAllBytes(context.getCodeCacheDir().toPath().resolve(file));
            expect(Arrays.equals(copy, weights), name + ": the copy");
        }
    }

    private static void refusals() throws Exception {
        byte[] others = weights.clone();
        others[20] ^= 1;
        String text = "the weights are missing, or those of another model";
        try {
            Digits.open(context("others", others, 64, false)).close();
            expect(false, "weights of another model are refused");
        } catch (Digits.ModelException error) {
            expect(error.status == 11 && error.getMessage().equals(text), error.getMessage());
        }
        try {
            new Digits(ByteBuffer.allocateDirect(0), 1, 0).close();
            expect(false, "no weights are refused");
        } catch (Digits.ModelException error) {
            expect(error.status == 11 || error.status == 3, error.getMessage());
        }
        try {
            new Digits(ByteBuffer.wrap(weights), 1, 0).close();
            expect(false, "a heap buffer is refused");
        } catch (IllegalArgumentException error) {
            expect(error.getMessage().contains("direct"), error.getMessage());
        }
    }

    private static Context context(String name, byte[] asset, int offset, boolean compressed)
            throws Exception {
        ByteArrayOutputStream apk = new ByteArrayOutputStream();
        apk.write(new byte[offset]);
        apk.write(asset);
        apk.write(new byte[100]);
        Path file = work.resolve(name + ".apk");
        Files.write(file, apk.toByteArray());
        File cache = Files.createDirectory(work.resolve(name)).toFile();
        return new Context(file.toFile(), offset, asset.length, compressed, cache);
    }

    private static float[] scores(Digits model) {
        float[] scores = new float[10];
        model.run(image, scores);
        return scores;
    }

    private static float[] floats(byte[] raw) {
        float[] values = new float[raw.length / 4];
        ByteBuffer.wrap(raw).order(ByteOrder.nativeOrder()).asFloatBuffer().get(values);
        return values;
    }

    private static void expect(boolean fact, String what) {
        if (!fact) {
            throw new AssertionError(what);
        }
    }
}
