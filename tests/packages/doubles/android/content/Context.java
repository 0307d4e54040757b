package android.content;

import android.content.res.AssetManager;
import java.io.File;

/** An app whose package is a plain file: the asset lies in it at an offset, or only compressed. */
public class Context {
    private final AssetManager assets;
    private final File cache;

    public Context(File apk, long offset, long length, boolean compressed, File cache) {
        assets = new AssetManager(apk, offset, length, compressed);
        this.cache = cache;
    }

    public AssetManager getAssets() {
        return assets;
    }

    public File getCodeCacheDir() {
        return cache;
    }
}
